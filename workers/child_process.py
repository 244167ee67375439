"""The worker's half of a child: start it from the warm forkserver, listen to it, measure it, end all of it."""

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from multiprocessing import forkserver, util
from multiprocessing.connection import wait
from pathlib import Path
from signal import SIGKILL, SIGTERM

import structlog

from olivepress.errors import RuntimeCrashed
from olivepress.lifetime import WORKER_PID_VARIABLE
from olivepress.own_process import WAITING
from workers import child, keeper
from workers.process_tree import Member, descendants, is_same, started_in

# Before any import of the libraries: afterwards they have read their environment. CI=true silences the Foundry runtime.
OFFLINE = {
    "OLIVE_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "CI": "true",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
END_WITHIN_S = 5.0
# Of the 107 bytes of a socket's path multiprocessing needs 33.
LONGEST_TEMPORARY_DIRECTORY = 70

log = structlog.get_logger(__name__)

Message = child.Progress | child.Success | child.Failure


def start_forkserver(code: child.StepCode) -> None:
    """Start the forkserver that children are forked from; returns at once, it imports on by itself.

    Must be called in the worker's main thread: the kernel ends the forkserver with the thread that started it.
    """
    os.environ.update(OFFLINE | WAITING)
    os.environ[WORKER_PID_VARIABLE] = str(os.getpid())
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["workers.forkserver", "workers.child", code.preload]
    )
    with _short_temporary_directory():
        # torch makes its cache when it is imported. Here it goes with the forkserver's socket when the worker ends.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(util.get_temp_dir()) / "torch")
        forkserver.ensure_running()


@contextlib.contextmanager
def _short_temporary_directory() -> Iterator[None]:
    """The forkserver listens on a socket in the temporary directory, and a socket's path has 107 bytes at most."""
    chosen = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_TEMPORARY_DIRECTORY:
        tempfile.tempdir = "/tmp"
    try:
        yield
    finally:
        tempfile.tempdir = chosen


def describe_toolchain(code: child.StepCode) -> list[str]:
    """Architectures that the toolchain can build; waits until the forkserver is warm.

    Raises:
        EOFError: the toolchain cannot be imported; the worker's log says why.
    """
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child.describe, args=(theirs, code), daemon=True)
    process.start()
    theirs.close()
    try:
        architectures: list[str] = ours.recv()
        return architectures
    finally:
        process.join()
        process.close()


class ChildProcess:
    """One running step with its keeper and everything that it starts.

    `kill` may be called from any thread; the rest belongs to the thread that made it.

    Raises:
        RuntimeCrashed: the forkserver is not there to fork it.
    """

    def __init__(self, request: child.ChildRequest) -> None:
        context = multiprocessing.get_context("forkserver")
        self._connection, theirs = context.Pipe(duplex=False)
        self._report, their_report = context.Pipe(duplex=False)
        self._process = context.Process(target=child.main, args=(theirs, their_report, request), daemon=True)
        try:
            self._process.start()
        except (EOFError, OSError) as error:
            raise RuntimeCrashed(
                "no process could be started for the step, because the toolchain did not load or ended; the worker's "
                "log has the reason, and `olivepress doctor` what is installed"
            ) from error
        theirs.close()
        their_report.close()
        assert self._process.pid is not None
        self.keeper_pid: int = self._process.pid
        self._scratch = request.scratch
        self._step_pid: int | None = None
        self._over: keeper.Over | None = None
        self._is_kept = True
        self._has_ended = False

    def receive(self, timeout_s: float) -> Message | None:
        """The next message; None after the timeout, or when there is none yet.

        Raises:
            EOFError: the child ended without saying how it went.
        """
        waited_for = [self._connection, *([self._report] if self._is_kept else [])]
        ready = wait(waited_for, timeout_s)
        if self._report in ready:
            self._hear_keeper()
        # Also when only its keeper was heard: what the step said last comes before its end.
        if self._connection in ready or (self._is_over and self._connection.poll(0)):
            try:
                message: Message = self._connection.recv()
            except OSError as error:
                raise EOFError("the child ended in the middle of a message") from error
            return message
        if self._is_over:
            raise EOFError("the child ended without a word")
        return None

    @property
    def cpu_s(self) -> float | None:
        """CPU seconds of all of it; known once it has ended, also if it was killed."""
        return self._over.cpu_s if self._over else None

    @property
    def exit_code(self) -> int | None:
        """After its end: the step's exit code. None: a signal ended it."""
        if self._over:
            return self._over.exit_code
        code = self._process.exitcode
        return code if code is not None and code >= 0 else None

    @property
    def signal(self) -> int | None:
        """After its end: the signal that ended the step (or its keeper, with which it ends)."""
        if self._over:
            return self._over.signal
        code = self._process.exitcode
        return -code if code is not None and code < 0 else None

    def kill(self) -> None:
        """End the step's process group at once, and have its keeper end the rest. Waits for nothing."""
        if self._has_ended:
            return
        if self._step_pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._step_pid, SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self.keeper_pid, SIGTERM)

    def end(self, patience_s: float = 0.0, family: Iterable[Member] = ()) -> None:
        """See that nothing of it runs any more; one that may end by itself is given some seconds for it.

        Args:
            family: its processes as they were seen last, for the case that its keeper was killed.
        """
        if self._has_ended:
            return
        self._await_keeper(patience_s)
        if not self._is_over:
            self.kill()
            self._await_keeper(END_WITHIN_S)
        self._process.join(END_WITHIN_S if self._is_over else 0)
        if self._process.exitcode is None:
            log.error("child_does_not_end", keeper_pid=self.keeper_pid, step_pid=self._step_pid)
            family = [*family, *descendants(self.keeper_pid)]
            self._process.kill()
            self._process.join(END_WITHIN_S)
        self._has_ended = True
        if self._over is None:
            # Without its keeper, what has a session of its own is nobody's child any more.
            family = [*family, *started_in(self._scratch)]
        for member in family:
            if is_same(member):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(member.pid, SIGKILL)
        self._connection.close()
        self._report.close()

    @property
    def _is_over(self) -> bool:
        return self._over is not None or not self._is_kept

    def _await_keeper(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._is_over and self._report.poll(max(0.0, deadline - time.monotonic())):
            self._hear_keeper()

    def _hear_keeper(self) -> None:
        try:
            message = self._report.recv()
        except (EOFError, OSError):
            self._is_kept = False
            return
        if isinstance(message, keeper.Started):
            self._step_pid = message.pid
        else:
            self._over = message
