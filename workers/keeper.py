"""The process between the forkserver and a step: it outlives the step just long enough to end all that it started.

    worker ── forkserver ── keeper ── step ── whatever it starts

It adopts what loses its parent below it, so nothing gets away, not even with a session of its own. When the step is
over, when the supervisor says so (SIGTERM) or when the forkserver is gone (and so the worker), it kills everything
below it, says how the step ended and what all of it cost, and ends. If the keeper itself is killed, the step dies with
it; what the step started then, in sessions of their own, the supervisor ends (`ChildProcess.end`).
"""

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from olivepress.lifetime import adopt_orphans, die_with_parent
from workers.process_tree import descendants

# Only where no signal tells of the parent's end.
LOOK_FOR_PARENT_EVERY_S = 0.5
KILL_AGAIN_EVERY_S = 0.01
WORK_DID_NOT_START = 70


@dataclass(frozen=True)
class Started:
    """The step runs, in a process group and session of this number."""

    pid: int


@dataclass(frozen=True)
class Over:
    """How the step's process ended, and the CPU seconds of it and of everything below it."""

    exit_code: int | None
    signal: int | None
    cpu_s: float


def keep(report: Connection, parent_pid: int, work: Callable[[], None], *given_away: Connection) -> None:
    """Run `work` in a process of its own and see to its end. Never returns.

    Args:
        report: Started and Over are sent here.
        given_away: connections that only the work uses.
    """
    # Not in the worker's group: a signal to all of that must not take the one that cleans up.
    os.setpgid(0, 0)
    keeper = _Keeper()
    adopt_orphans()
    if sys.platform == "linux":
        die_with_parent(parent_pid, signal.SIGTERM)
    own_pid = os.getpid()
    step_pid = os.fork()
    if step_pid == 0:
        try:
            report.close()
            keeper.leave()
            os.setsid()
            die_with_parent(own_pid)
            work()
        finally:
            os._exit(WORK_DID_NOT_START)
    try:
        for connection in given_away:
            connection.close()
        with contextlib.suppress(OSError):
            report.send(Started(step_pid))
        over = keeper.see_through(step_pid, parent_pid)
        with contextlib.suppress(OSError):
            report.send(over)
    finally:
        os._exit(0)


class _Keeper:
    def __init__(self) -> None:
        self._is_asked_to_end = False
        self._wake, self._awake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._awake, False)
        self._before = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._end),
            signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None),
            signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
            signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        }
        signal.set_wakeup_fd(self._awake, warn_on_full_buffer=False)

    def leave(self) -> None:
        """In the step's process: signals mean there what they meant before."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._wake)
        os.close(self._awake)

    def see_through(self, step_pid: int, parent_pid: int) -> Over:
        """Wait for the step's end, or end it; then end what it left."""
        status, cpu_s, is_alone = None, 0.0, False
        while not is_alone:
            must_end = status is not None or self._is_asked_to_end or os.getppid() != parent_pid
            if must_end:
                _kill_below(step_pid if status is None else None)
            self._wait(KILL_AGAIN_EVERY_S if must_end else LOOK_FOR_PARENT_EVERY_S)
            while True:
                try:
                    pid, ended, usage = os.wait4(-1, os.WNOHANG)
                except ChildProcessError:
                    is_alone = True
                    break
                if pid == 0:
                    break
                cpu_s += usage.ru_utime + usage.ru_stime
                if pid == step_pid:
                    status = ended
        code = os.waitstatus_to_exitcode(status) if status is not None else None
        is_signal = code is not None and code < 0
        return Over(None if is_signal else code, -code if is_signal and code else None, cpu_s)

    def _end(self, *_: object) -> None:
        self._is_asked_to_end = True

    def _wait(self, timeout_s: float) -> None:
        if select.select([self._wake], [], [], timeout_s)[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)


def _kill_below(group: int | None) -> None:
    if group is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for member in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(member.pid, signal.SIGKILL)
