"""The self test on this machine: a tiny checkpoint becomes an int4 model that answers; part of `olivepress doctor`."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from olivepress.cli.checks import Json, check
from olivepress.errors import OlivepressError
from olivepress.own_process import Program, ask

SELF_TEST = Program("workers.self_test", "the self test", time_limit_s=600.0)
COLD_S, WARM_S = 45.0, 10.0
LOG_LINES = 15
WHAT_NOW = "install the versions that were tested together: pip install 'olivepress[worker]' -c requirements.lock"


def run_self_test(missing: Sequence[str], to: Console) -> tuple[Json | None, list[Json]]:
    """Run it in processes of its own.

    Args:
        missing: distributions of the worker extra that are not installed here.
        to: where its progress is shown.

    Returns:
        What it found (workers.self_test), or None, and its checks.
    """
    if sys.platform == "win32":
        return None, [check("self test", "fail", "no worker runs on Windows", "run it where a worker runs")]
    if missing:
        what_now = "pip install 'olivepress[worker]', or run it on a machine with a worker"
        return None, [check("self test", "fail", f"not installed here: {', '.join(missing)}", what_now)]
    with tempfile.TemporaryDirectory(prefix="olivepress-self-test-", ignore_cleanup_errors=True) as scratch:
        directory, log_file = Path(scratch) / "self-test", Path(scratch) / "log"
        directory.mkdir()
        try:
            with log_file.open("wb") as log, to.status("self test") as status:
                found = ask(
                    SELF_TEST,
                    {"directory": str(directory)},
                    Path(scratch),
                    on_progress=lambda phase, share: status.update(f"self test: {phase}"),
                    log=log,
                )
        except OlivepressError as error:
            return None, [check("self test", "fail", f"{error}\n{_last_lines(log_file)}", WHAT_NOW)]
        if not all(part["is_ok"] or part["log"] for part in found["parts"]):
            # What a part that failed printed before it had a log of its own.
            found["parts"][-1]["log"] = _last_lines(log_file)
    return found, list(_checks(found))


def _checks(found: dict[str, Any]) -> Iterator[Json]:
    for part in found["parts"]:
        name, took = f"self test: {part['name']}", f"{part['seconds']:.1f} s"
        if part["is_ok"]:
            yield check(name, "ok", f"{took}; {part['detail']}")
        else:
            what, _, what_now = part["detail"].partition("; ")
            yield check(
                name, "fail", "\n".join(filter(None, (f"after {took}: {what}", part["log"]))), what_now or WHAT_NOW
            )
            return
    took = f"{found['cold_s']:.1f} s, {found['warm_s']:.1f} s of it as on a worker that has loaded its toolchain"
    if found["cold_s"] <= COLD_S and found["warm_s"] <= WARM_S:
        yield check("self test", "ok", took)
        return
    detail = f"{took}; {COLD_S:.0f} s and {WARM_S:.0f} s are usual"
    yield check("self test", "warn", detail, "see what else this machine is doing, and that its disk is not slow")


def _last_lines(file: Path) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-LOG_LINES:])
