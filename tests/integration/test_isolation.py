"""Attempts reach no network, write into their workspaces only, and leave nothing; their noise goes into their logs."""

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from olivepress.jobs import AttemptOutcome, StepKind
from olivepress.own_process import PASSED_ON
from tests.doubles.orders import Order, Orders, write_checkpoint
from tests.watched_calls import Call, Watched, is_possible, run_watched

pytestmark = pytest.mark.skipif(not is_possible, reason="needs Linux on x86-64 or 64-bit ARM")

REPOSITORY = Path(__file__).parents[2]
PROGRAM = (
    "import sys; from pathlib import Path; from tests.integration.isolated_run import main; main(Path(sys.argv[1]))"
)
WITHIN_S = 240.0
# What a worker itself makes when it starts: the socket on which its forkserver listens, and a try whether a directory
# can be written at all.
FORKSERVER_DIRECTORY = re.compile(r"pymp-[^/]+(/.*)?")
TRIED_AT_START = re.compile(r"[a-z0-9_]{8}")
SEMAPHORES = "/dev/shm/sem."
HOST_LOCK = re.compile(r"olivepress-\d+\.timed\.lock")
RECIPES = ["cpu-int4", "cpu-fp16"]
FAILING = {"name": "failing", "precision": "int4", "summary": "x", "nodes_to_exclude": ["/model/nowhere/MatMul"]}
QUANTIZED = {
    "name": "quantized",
    "precision": "int8",
    "summary": "x",
    "olive_passes": {"after": [{"type": "OnnxDynamicQuantization"}], "builder_precision": "fp32"},
}
FULL_INT4, FULL_FP16, FULL_FAILING, FULL_QUANTIZED, ADAPTER_INT4 = 1, 2, 3, 4, 5


@dataclass
class Run:
    """A worker that ran jobs while it was watched."""

    root: Path
    watched: Watched
    attempts: list[dict[str, Any]]
    progress: list[tuple[int, str, float]]
    left: list[str]
    certificates: list[dict[str, Any]]

    @property
    def console(self) -> str:
        return (self.root / "console").read_text()

    @property
    def workspaces(self) -> Path:
        return self.root / "data" / "workspaces"

    def of(self, job_id: int, kind: StepKind) -> list[dict[str, Any]]:
        """The attempts at a step, oldest first."""
        return [row for row in self.attempts if (row["job_id"], row["kind"]) == (job_id, kind.value)]

    def is_gone_semaphore(self, call: Call) -> bool:
        """Whether it is about a semaphore that was without a name when its process went on (sem_overview(7))."""
        removed = {other.target for other in self.watched.writes if (other.name, other.pid) == ("unlink", call.pid)}
        return call.target.startswith(SEMAPHORES) and call.target in removed

    def is_a_steps(self, call: Call) -> bool:
        """Whether a process of an attempt made this call."""
        return Path(call.directory).is_relative_to(self.workspaces)


def run_worker(root: Path, batches: Sequence[dict[str, Any]], **orders: Any) -> Run:
    """A worker whose home, temporary and working directories are its own, over checkpoints under `root`."""
    for name in ("data", "home", "tmp", "work"):
        (root / name).mkdir()
    code = {"steps": "workers.steps", "preload": "workers.preload"}
    given = {"data_dir": str(root / "data"), "root": str(root), "batches": batches, "recipes": [], "kill": False}
    (root / "orders.json").write_text(json.dumps(code | given | {"validated": []} | orders))
    environment = {
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-c", PROGRAM, str(root / "orders.json")]
    with (root / "console").open("wb") as console:
        try:
            watched = run_watched(command, env=environment, cwd=root / "work", output=console, timeout_s=WITHIN_S)
        except OSError as error:
            pytest.skip(f"nobody can watch system calls here: {error}")
    assert watched.exit_code == 0, (root / "console").read_text()[-4000:]
    return Run(root, watched, **json.loads((root / "data" / "outcome.json").read_text()))


def outside(run: Run) -> list[Call]:
    """The writes of a worker and of all its attempts that are neither its data nor what it makes for itself."""
    temporary = str((run.root / "tmp").resolve())
    own = (FORKSERVER_DIRECTORY, TRIED_AT_START)

    def is_the_workers(call: Call) -> bool:
        # Also its attempts may take the lock by which timed measures of one host wait for each other.
        place, _, name = call.target.partition(f"{temporary}/")
        if (not place and HOST_LOCK.fullmatch(name)) or run.is_gone_semaphore(call):
            return True
        if run.is_a_steps(call):
            return False
        return (not place and any(pattern.fullmatch(name) for pattern in own)) or "/__pycache__" in call.target

    return [call for call in run.watched.written_outside(run.root / "data") if not is_the_workers(call)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The real steps: precisions, a pass of Olive and an adapter; one model goes all the way; a kill and a failure."""
    # Not above: tests without the toolchain share this file.
    from tests.checkpoints import tiny_adapter, tiny_checkpoint

    root = tmp_path_factory.mktemp("isolation")
    full = tiny_checkpoint(root / "full", "qwen2", max_position_embeddings=192)
    adapter = tiny_adapter(root / "adapter", full)
    batches = [
        {"recipes": [*RECIPES, FAILING["name"], QUANTIZED["name"]], "checkpoints": [{"path": str(full)}]},
        {"recipes": ["cpu-int4"], "checkpoints": [{"path": str(adapter), "base": str(full)}]},
    ]
    return run_worker(root, batches, recipes=[FAILING, QUANTIZED], validated=[FULL_INT4], kill=True)


@pytest.mark.toolchain
def test_all_of_it_ran(run: Run) -> None:
    outcomes = {(row["job_id"], row["kind"]): row["outcome"] for row in run.attempts}
    for job_id in (FULL_INT4, FULL_FP16, FULL_QUANTIZED, ADAPTER_INT4):
        assert outcomes[job_id, "convert"] == outcomes[job_id, "package"] == AttemptOutcome.SUCCEEDED
    assert outcomes[FULL_QUANTIZED, "quantize"] == outcomes[FULL_INT4, "validate"] == AttemptOutcome.SUCCEEDED
    assert [(one["status"], one["problem"]) for one in run.certificates] == [("passed", None)]
    killed, again = run.of(FULL_INT4, StepKind.CONVERT)
    assert (killed["outcome"], killed["signal"], again["outcome"]) == ("crashed", 9, "succeeded")
    (failed,) = run.of(FULL_FAILING, StepKind.CONVERT)
    assert "nodes_to_exclude names /model/nowhere/MatMul" in failed["error_message"]


@pytest.mark.toolchain
def test_nothing_asks_for_a_connection_or_a_name(run: Run) -> None:
    assert not run.watched.connects, "\n".join(map(str, run.watched.connects))


@pytest.mark.toolchain
def test_nothing_is_written_outside_the_data_directory(run: Run) -> None:
    assert not outside(run), "\n".join(map(str, outside(run)))


@pytest.mark.toolchain
def test_steps_write_into_their_own_workspace_only(run: Run) -> None:
    strange = [
        call
        for call in run.watched.written_outside(run.workspaces)
        if run.is_a_steps(call) and not HOST_LOCK.fullmatch(Path(call.target).name) and not run.is_gone_semaphore(call)
    ]
    assert not strange, "\n".join(map(str, strange))
    assert any(run.is_a_steps(call) for call in run.watched.writes)


@pytest.mark.toolchain
def test_nothing_of_an_attempt_survives_also_if_it_failed_or_was_killed(run: Run) -> None:
    assert run.left == []
    assert list(run.workspaces.iterdir()) == []


@pytest.mark.toolchain
def test_nothing_is_left_in_the_homes_and_temporary_directories(run: Run) -> None:
    left = [path for name in ("home", "tmp", "work") for path in (run.root / name).rglob("*")]
    assert [path for path in left if not HOST_LOCK.fullmatch(path.name)] == []


@pytest.mark.toolchain
@pytest.mark.parametrize(
    ("job_id", "phases"),
    [
        (FULL_INT4, ["build", "check"]),
        (FULL_FP16, ["build", "check"]),
        # It begins with a model in fp32.
        (FULL_QUANTIZED, ["build", "check"]),
        (ADAPTER_INT4, ["merge", "build", "check"]),
    ],
)
def test_progress_from_inside_a_conversion_reaches_the_row(run: Run, job_id: int, phases: list[str]) -> None:
    step_id = run.of(job_id, StepKind.CONVERT)[-1]["id"]

    seen = [(phase, share) for seen_id, phase, share in run.progress if seen_id == step_id]

    shares = [share for _, share in seen]
    assert list(dict.fromkeys(phase for phase, _ in seen)) == phases
    assert shares == sorted(shares)
    assert any(0 < share < 1 for share in shares)


@pytest.mark.toolchain
def test_the_toolchains_log_is_the_attempts_and_not_the_workers(run: Run) -> None:
    log = run.of(FULL_FP16, StepKind.CONVERT)[-1]["log_tail"]

    # The builder prints, Olive logs to what was standard output when it was imported, transformers draws a bar.
    for words in ("Saving ONNX model in", "Pass build:modelbuilder finished", "Loading weights: 100%"):
        assert words in log
    lines = run.console.splitlines()
    assert any("attempt_ended" in line for line in lines)
    assert [line for line in lines if not re.match(r"[\d-]+ [\d:]+ \[\w+ *\] attempt_(started|ended) ", line)] == []


@pytest.fixture(scope="module")
def straying(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same over a double that does what must not be: that the tests above would fail."""
    root = tmp_path_factory.mktemp("watching")
    checkpoint = write_checkpoint(root / "checkpoint", 1, Orders({"convert": Order(log_lines=1)}))
    code = {"steps": "tests.doubles.straying", "preload": "tests.doubles.preload"}
    return run_worker(root, [{"recipes": ["cpu-int4"], "checkpoints": [{"path": str(checkpoint)}]}], **code)


@pytest.mark.parametrize(
    "wanted",
    [
        "connect 192.0.2.1 port 80",
        "connect 2001:db8::1 port 443",
        "look-up telemetry.example.invalid",
        "sendto 192.0.2.2 port 514",
        "connect 192.0.2.3 port 8080",
        "bind 0.0.0.0 port 18999",
    ],
    ids=["a connection", "IPv6", "a name", "a packet", "of a native library in a child", "listening for all"],
)
def test_a_step_that_reaches_for_the_network_is_found(straying: Run, wanted: str) -> None:
    found = [f"{call.name} {call.target}" for call in straying.watched.connects if straying.is_a_steps(call)]
    assert wanted in found


def test_talking_to_oneself_is_no_connection(straying: Run) -> None:
    assert not [call for call in straying.watched.connects if "127.0.0.1" in call.target or "::1 " in call.target[:4]]


@pytest.mark.parametrize("name", ["home/.cache", "tmp/strayed", "work/strayed", "data/strayed"])
def test_a_step_that_writes_elsewhere_is_found_though_it_removes_that_again(straying: Run, name: str) -> None:
    path = straying.root.resolve() / name
    assert not path.exists()
    strange = [call for call in straying.watched.written_outside(straying.workspaces) if straying.is_a_steps(call)]
    assert str(path) in [call.target for call in strange]
    if not name.startswith("data"):
        assert str(path) in [call.target for call in outside(straying)]
