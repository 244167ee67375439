"""The warm child in which one step runs: a fork of the preloaded forkserver, in its own session.

The worker imports this module too, to name `main`; nothing heavy is imported here, only in the child.
"""

import contextlib
import errno
import logging
import multiprocessing
import os
import resource
import secrets
import sys
import tempfile
import traceback
import uuid
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from olivepress.errors import DiskFull, OlivepressError, TransientError
from olivepress.jobs import StepKind
from olivepress.lifetime import die_with_parent
from workers import keeper
from workers.out_of_memory import is_out_of_memory
from workers.steps.context import StepContext

# The kernel's choice when the machine runs out of memory: a step, not the worker that can tell of it.
OOM_SCORE_ADJUSTMENT = 500
# Where libraries put what nobody told them where to put. Each gets a directory of its own in the scratch.
PLACES = {
    "HOME": "home",
    "TMPDIR": "tmp",
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "XDG_DATA_HOME": "data",
    "XDG_STATE_HOME": "state",
    "HF_HOME": "hub",
    "OLIVE_CACHE_DIR": "olive",
    "TORCHINDUCTOR_CACHE_DIR": "torch",
}


@dataclass(frozen=True)
class StepCode:
    """Where the code of the steps lies. Tests whose subject is the execution put a double of the toolchain here."""

    steps: str = "workers.steps"
    """A package with a module for each step kind that runs in a child."""
    preload: str = "workers.preload"
    """What the forkserver imports; its `supported_architectures()` says what can be built."""


@dataclass(frozen=True)
class ChildRequest:
    """What a child is to do, and where."""

    kind: StepKind
    code: StepCode
    spec: dict[str, Any]
    inputs: dict[str, Path]
    output: Path
    scratch: Path
    log_file: Path
    exclusive_lock: Path
    control_group: Path | None = None
    """The cgroup in which it runs, where its memory is limited by one."""


@dataclass(frozen=True)
class Progress:
    """Where the step is: a phase, and the share (0 to 1) of the step that is done."""

    phase: str
    share: float


@dataclass(frozen=True)
class Success:
    """What the step returned."""

    result: dict[str, Any]
    cpu_s: float


@dataclass(frozen=True)
class Failure:
    """Why the step ended without a result."""

    error_class: str
    message: str
    may_retry: bool
    cpu_s: float
    is_out_of_memory: bool = False


def main(connection: Connection, report: Connection, request: ChildRequest) -> None:
    """Keep a process in which the step runs. Never returns.

    Args:
        connection: the step sends Progress, then Success or Failure.
        report: its keeper says that it runs, and how its process ended.
    """
    keeper.keep(report, _forkserver_pid(), lambda: _work(connection, request), connection)


def _work(connection: Connection, request: ChildRequest) -> None:
    exit_code = 1
    try:
        answer = _run(connection, request)
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send(answer)
        connection.close()
        exit_code = 0
    except BaseException:  # The edge of the process: a step that calls sys.exit, a supervisor that does not listen.
        traceback.print_exc()
    finally:
        # The libraries' threads and exit handlers have nothing left to do that anybody would miss.
        os._exit(exit_code)


def describe(connection: Connection, code: StepCode) -> None:
    """Send what this toolchain can build: the first child of a worker, which also proves that it is warm."""
    os.setsid()
    die_with_parent(_forkserver_pid())
    try:
        connection.send(import_module(code.preload).supported_architectures())
    except BaseException:  # The edge of the process. The forkserver itself passes over imports that fail.
        traceback.print_exc()
    finally:
        os._exit(0)


def _run(connection: Connection, request: ChildRequest) -> Success | Failure:
    context = StepContext(
        output=request.output,
        scratch=request.scratch,
        exclusive_lock=request.exclusive_lock,
        inputs=request.inputs,
        report_progress=_Reported(connection),
    )
    try:
        _enter(request)
        step = import_module(f"{request.code.steps}.{request.kind.value}")
        return Success(step.run(request.spec, context), _cpu_s())
    except OlivepressError as error:
        logging.getLogger(__name__).error("%s: %s", type(error).__name__, error)
        may_retry = isinstance(error, TransientError)
        return Failure(type(error).__name__, str(error), may_retry, _cpu_s(), is_out_of_memory(error))
    except Exception as error:  # The edge of the process: anything else is a bug, shown whole in the log.
        traceback.print_exc()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"no room is left in the workspace {request.scratch.parent}; free some disk space"
            return Failure(DiskFull.__name__, message, True, _cpu_s())
        message = f"{type(error).__name__}: {error}; this is not an error that olivepress knows: see the attempt's log"
        return Failure(type(error).__name__, message, True, _cpu_s(), is_out_of_memory(error))


class _Reported:
    """Sends progress to the worker. Whatever the toolchain counts, a share lies in 0 to 1 and never goes back."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last = Progress("", 0.0)

    def __call__(self, phase: str, share: float) -> None:
        # In this order also a share that is no number changes nothing.
        told = Progress(phase, max(self._last.share, min(share, 1.0)))
        if told != self._last:
            self._connection.send(told)
            self._last = told


def _forkserver_pid() -> int:
    pid: int = import_module("workers.forkserver").FORKSERVER_PID
    return pid


def _enter(request: ChildRequest) -> None:
    """Make the attempt's scratch directory the whole world of the libraries, and its log file their console."""
    log = os.open(request.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    if request.control_group is not None:
        (request.control_group / "cgroup.procs").write_text(str(os.getpid()))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJUSTMENT))
    os.chdir(request.scratch)
    for variable, name in PLACES.items():
        place = request.scratch / name
        place.mkdir(exist_ok=True)
        os.environ[variable] = str(place)
    tempfile.tempdir = str(request.scratch / "tmp")
    _leave_nothing_elsewhere()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )


def _leave_nothing_elsewhere() -> None:
    """Keep Python itself from what outlives the attempt outside its directories (tests/integration/test_isolation)."""
    # What is imported only now would leave its byte code beside the library.
    sys.dont_write_bytecode = True
    # A child of a forkserver makes semaphores with a name, for processes that are not there; those stay in /dev/shm.
    multiprocessing.set_start_method("fork", force=True)
    # uuid1, which onnx takes names from, is libuuid's: that keeps a clock in /var/lib, and its ids name the machine.
    uuid._generate_time_safe = None
    uuid._node = secrets.randbits(48)


def _cpu_s() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )
