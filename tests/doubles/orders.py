"""What a double is told to do: `double.json` in the checkpoint's directory, an object for each step kind.

    {"convert": {"seconds": 0.5, "ending": "crash", "times": 1}, "validate": {"ending": "gate"}}

Without a `double.json`, and for kinds that it does not name, a double does its work at once.
"""

import ctypes
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from olivepress.errors import ConversionFailed, RuntimeCrashed
from workers.steps.context import StepContext

ORDERS_FILE = "double.json"
# A name that ingest's identity of the files does not look at.
RUNS_PATTERN = "runs-{kind}"
SLICE_S = 0.05
GRANDCHILD_LIVES_S = 3600
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What one step is to do before it writes its result.

    Args:
        seconds: how long it works.
        bytes: how much it writes, in incompressible bytes (convert only).
        allocate_bytes: memory that it touches and holds while it works.
        log_lines: lines that it prints, evenly over its time.
        ending: None: it succeeds. "crash" (SIGSEGV), "killed" (SIGKILL to itself), "exit" (with `exit_code`), "hang",
            "fail" (a permanent error), "transient" (one that is tried again), "bug" (an error nobody knows),
            "memory" (a MemoryError), "gate" (validate only: the verdict is failed).
        times: how often it ends so, counted for the checkpoint's directory (ingest and convert only); later runs
            succeed. None: always.
        ignore_signals: SIGTERM and SIGINT do nothing.
        grandchild: None, or a process that it starts and leaves behind: "group" in its own process group, "session" in
            a session of its own.
    """

    seconds: float = 0.0
    bytes: int = 0
    allocate_bytes: int = 0
    log_lines: int = 0
    ending: str | None = None
    times: int | None = None
    exit_code: int = 3
    ignore_signals: bool = False
    grandchild: str | None = None


@dataclass(frozen=True)
class Orders:
    """The orders of one checkpoint, by step kind."""

    steps: dict[str, Order] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "Orders":
        """Those in this directory, or none."""
        try:
            values = json.loads((directory / ORDERS_FILE).read_text())
        except FileNotFoundError:
            return cls()
        return cls({kind: Order(**order) for kind, order in values.items()})

    def write(self, directory: Path) -> None:
        """Put them where `read` finds them."""
        text = json.dumps({kind: asdict(order) for kind, order in self.steps.items()}, indent=1, sort_keys=True)
        (directory / ORDERS_FILE).write_text(text + "\n")

    def of(self, kind: str) -> Order:
        """What a step of this kind is to do."""
        return self.steps.get(kind, Order())


def write_checkpoint(directory: Path, seed: int, orders: Orders | None = None) -> Path:
    """A directory that the doubles take for a checkpoint; its content is the seed and the orders."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "double", "seed": seed}) + "\n")
    (orders or Orders()).write(directory)
    return directory


def content_digest(directory: Path) -> str:
    """SHA-256 (hex) of all that decides what the doubles write."""
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    orders = directory / ORDERS_FILE
    digest.update(orders.read_bytes() if orders.exists() else b"")
    return digest.hexdigest()


def model_bytes(seed: str, count: int) -> bytes:
    """The same incompressible bytes for the same seed, on every machine."""
    return hashlib.shake_256(seed.encode()).digest(count)


def obey(order: Order, kind: str, context: StepContext, checkpoint: Path | None = None) -> None:
    """Work as ordered; returns unless the ending says otherwise.

    Args:
        checkpoint: where runs are counted, for orders with `times`.
    """
    if order.ignore_signals:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if order.grandchild:
        command = [sys.executable, "-c", f"import time; time.sleep({GRANDCHILD_LIVES_S})"]
        started = subprocess.Popen(command, start_new_session=order.grandchild == "session")
        print(f"grandchild {started.pid}", flush=True)  # noqa: T201 (the attempt's log)
    held = _allocate(order.allocate_bytes)
    _work(order, kind, context)
    del held
    if order.ending and (order.times is None or _run_number(checkpoint, kind) <= order.times):
        _end(order)


def _allocate(count: int) -> bytearray:
    """Memory whose pages are all touched."""
    block = bytearray(count)
    block[::4096] = b"\x01" * len(range(0, count, 4096))
    return block


def _work(order: Order, kind: str, context: StepContext) -> None:
    started, printed = time.monotonic(), 0
    while True:
        spent = time.monotonic() - started
        share = min(1.0, spent / order.seconds) if order.seconds else 1.0
        while printed < round(share * order.log_lines):
            printed += 1
            print(f"{kind} line {printed} of {order.log_lines}", flush=True)  # noqa: T201 (the attempt's log)
        context.report_progress(f"double {kind}", share)
        if share >= 1.0:
            return
        time.sleep(min(SLICE_S, order.seconds - spent))


def _run_number(checkpoint: Path | None, kind: str) -> int:
    """Which run of the step this is, from 1: counted by a byte a run, so that a kill cannot lose one."""
    if checkpoint is None:
        raise ValueError(f"'times' cannot be ordered for {kind}: it does not know the checkpoint's directory")
    with (checkpoint / RUNS_PATTERN.format(kind=kind)).open("ab", buffering=0) as runs:
        runs.write(b".")
        return runs.tell()


def _end(order: Order) -> None:
    log.info("the double ends as ordered: %s", order.ending)
    sys.stdout.flush()
    if order.ending == "crash":
        _no_core_dump()
        os.kill(os.getpid(), signal.SIGSEGV)
    elif order.ending == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif order.ending == "exit":
        os._exit(order.exit_code)
    elif order.ending == "hang":
        while True:
            time.sleep(60)
    errors: dict[str | None, Exception] = {
        "fail": ConversionFailed("the double was ordered to fail; order something else"),
        "transient": RuntimeCrashed("the double was ordered to fail for once; it is tried again"),
        "bug": ValueError("the double was ordered to have a bug"),
        "memory": MemoryError("the double was ordered to find no memory"),
    }
    raise errors[order.ending]


def _no_core_dump() -> None:
    """Of a crash that is ordered nobody wants the memory on disk. Source: prctl(2), PR_SET_DUMPABLE."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)


def result_of(orders: Orders, digest: str) -> dict[str, Any]:
    """What ingest tells the later steps of a double's checkpoint."""
    return {
        "checkpoint_digest": digest,
        "kind": "full",
        "architecture": "DoubleForCausalLM",
        "family": "double",
        "parameters": 1_000_000,
        "size_bytes": 2_000_000,
        "sizes": {
            "source_bytes": 2_000_000,
            "parameters": 1_000_000,
            "embedding_parameters": 100_000,
            "largest_tensor_parameters": 100_000,
            "tied_embeddings": False,
            "is_adapter": False,
        },
        "dtype": "bfloat16",
        "tied_embeddings": False,
        "context_length": 2048,
        "vocabulary_size": 1000,
        "files": [],
        "base": None,
        "base_path": None,
        "notes": [],
        "orders": {kind: asdict(order) for kind, order in orders.steps.items()},
    }
