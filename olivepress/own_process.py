"""Asks a program of ours a question in a process of its own, which may crash, hang or be killed without harm here.

The program is a module started with `python -m`. It reads one JSON object from standard input and writes JSON objects,
a line each, to what was its standard output: {"progress": [phase, share]} as often as it likes, then {"answer": {...}}
or {"error": {"class": ..., "message": ...}}. Everything else that is printed there goes to standard error, the log.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from olivepress import errors
from olivepress.errors import OlivepressError, RuntimeCrashed
from olivepress.lifetime import die_with_parent

OFFLINE = {
    "CI": "true",
    "HF_HUB_OFFLINE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
"""Set before any library of the program is imported; CI=true is what silences Foundry Local's telemetry."""

WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""OpenMP's threads, which torch computes with, spin while they wait for each other. With more work than cores (other
slots, other services) that made torch 10 to 30 times slower (measured); a quiet machine loses next to nothing.
"""

# Where this process's interpreter and libraries are found, and how many threads they use; nothing else is passed on.
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "SYSTEMROOT", "VIRTUAL_ENV")
PARENT_VARIABLE = "OLIVEPRESS_PARENT_PID"
# Between the answer and the end of the process lies only its interpreter's shutdown.
END_WITHIN_S = 10.0
TELL_TALE_SIGNALS = {
    "SIGKILL": "killed, most often because the machine ran out of memory",
    "SIGSEGV": "crashed with a memory fault",
    "SIGABRT": "aborted itself",
    "SIGILL": "met an instruction that this processor does not have",
    "SIGBUS": "crashed with a memory fault: a file that it had open became shorter, or the disk is full",
}

ProgressListener = Callable[[str, float], None]


@dataclass(frozen=True)
class Program:
    """A module that answers, what people call it, and how long it may take in seconds (None: as long as it likes)."""

    module: str
    title: str
    time_limit_s: float | None


def _no_progress(phase: str, share: float) -> None:
    """Nobody listens."""


def ask(
    program: Program,
    request: Mapping[str, Any],
    scratch: Path,
    *,
    on_progress: ProgressListener = _no_progress,
    log: IO[bytes] | None = None,
) -> dict[str, Any]:
    """The program's answer to the request, both JSON values.

    `scratch` becomes its working directory, HOME and place for temporary files. What it prints goes to `log`, by
    default this process's standard error. It ends when the thread that called this ends (Linux).

    Raises:
        RuntimeCrashed: it ended without an answer, or was stopped at its time limit; the message says which and when.
        OlivepressError: the error that it reported itself.
    """
    with _start(program, scratch, log) as process:
        watchdog = _Watchdog(process, program.time_limit_s)
        try:
            message, phase = _converse(process, request, on_progress)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_WITHIN_S)
        finally:
            process.kill()
            watchdog.stop()
    if message is not None and "answer" in message:
        answer: dict[str, Any] = message["answer"]
        return answer
    if message is not None and "error" in message:
        raise _error(message["error"])
    raise RuntimeCrashed(f"{program.title} {_why(process.returncode, watchdog, program)}{phase}")


def _start(program: Program, scratch: Path, log: IO[bytes] | None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        # -P: nothing in the scratch directory is imported.
        [sys.executable, "-P", "-m", program.module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=scratch,
        env=_environment(scratch),
        text=True,
        encoding="utf-8",
    )


class _Watchdog:
    """Kills a process at its time limit."""

    def __init__(self, process: subprocess.Popen[str], time_limit_s: float | None) -> None:
        self.has_bitten = False
        self._process = process
        self._timer = threading.Timer(time_limit_s or 0.0, self._bite)
        self._timer.daemon = True
        if time_limit_s is not None:
            self._timer.start()

    def _bite(self) -> None:
        if self._process.poll() is None:
            self.has_bitten = True
            self._process.kill()

    def stop(self) -> None:
        self._timer.cancel()


def _converse(
    process: subprocess.Popen[str], request: Mapping[str, Any], on_progress: ProgressListener
) -> tuple[dict[str, Any] | None, str]:
    """Hand over the request and listen; returns the message that ends the conversation, if any, and the phase."""
    stdin, stdout = _streams(process)
    try:
        stdin.write(json.dumps(request))
        stdin.close()
    except BrokenPipeError:
        # It is gone already; its exit code says why.
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        return None, ""
    phase = ""
    for line in stdout:
        try:
            message = json.loads(line)
        except ValueError:
            # The line that it was writing when it ended.
            break
        if "progress" not in message:
            return message, phase
        name, share = message["progress"]
        phase = f" while {name}"
        on_progress(name, share)
    return None, phase


def _streams(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if process.stdin is None or process.stdout is None:
        raise AssertionError("both streams are pipes")
    return process.stdin, process.stdout


def _environment(scratch: Path) -> dict[str, str]:
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    places = {name: str(scratch) for name in ("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME")}
    path = os.pathsep.join(filter(None, [str(_services_root()), os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, PARENT_VARIABLE: str(os.getpid()), "PYTHONUTF8": "1"}
    return environment | places | OFFLINE | WAITING | own


def _services_root() -> Path:
    """The directory that holds `workers`: the repository's, or the one inside the installed wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "_services"
    return inside if inside.is_dir() else package.parent


def _why(exit_code: int, watchdog: _Watchdog, program: Program) -> str:
    if watchdog.has_bitten:
        return f"did not answer within {program.time_limit_s:.0f} s and was stopped"
    if exit_code < 0:
        try:
            name = signal.Signals(-exit_code).name
        except ValueError:
            name = f"signal {-exit_code}"
        return f"{TELL_TALE_SIGNALS.get(name, 'was ended from outside')} ({name})"
    if exit_code > 0:
        return f"ended with exit code {exit_code}; the log shows what it printed"
    return "ended without an answer"


def _error(described: Mapping[str, str]) -> OlivepressError:
    """The error that the program reported, as the same class."""
    kind = getattr(errors, described["class"], None)
    if isinstance(kind, type) and issubclass(kind, OlivepressError):
        return kind(described["message"])
    return RuntimeCrashed(described["message"])


def answer_with(handle: Callable[[dict[str, Any], ProgressListener], dict[str, Any]]) -> None:
    """The program's side: read the request, call `handle(request, report_progress)`, write its answer or error."""
    # On Windows the interpreter of a virtual environment is a launcher: not the asker, but that is our parent there.
    if PARENT_VARIABLE in os.environ and sys.platform != "win32":
        die_with_parent(int(os.environ[PARENT_VARIABLE]))
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # From here on a print, of Python or of a native library, goes to the log.
    os.dup2(2, 1)

    def say(message: Mapping[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        request = json.load(sys.stdin)
        answer = handle(request, lambda phase, share: say({"progress": [phase, share]}))
    except OlivepressError as error:
        say({"error": {"class": type(error).__name__, "message": str(error)}})
    else:
        say({"answer": answer})
