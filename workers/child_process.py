"""The worker's half of a child: start it from the warm forkserver, listen to it, measure it, end all of it."""

import contextlib
import multiprocessing
import os
import signal
from multiprocessing import forkserver
from multiprocessing.connection import Connection

import psutil

from olivepress.errors import RuntimeCrashed
from olivepress.lifetime import WORKER_PID_VARIABLE
from workers import child

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

Message = child.Progress | child.Success | child.Failure


def start_forkserver(code: child.StepCode) -> None:
    """Start the forkserver that children are forked from; returns at once, it imports on by itself.

    Must be called in the worker's main thread: the kernel ends the forkserver with the thread that started it.
    """
    os.environ.update(OFFLINE)
    os.environ[WORKER_PID_VARIABLE] = str(os.getpid())
    multiprocessing.get_context("forkserver").set_forkserver_preload(["workers.forkserver", code.preload])
    forkserver.ensure_running()


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
    """One running child and everything that it started.

    Raises:
        RuntimeCrashed: the forkserver is not there to fork it.
    """

    def __init__(self, request: child.ChildRequest) -> None:
        context = multiprocessing.get_context("forkserver")
        self._connection, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=child.main, args=(theirs, request), daemon=True)
        try:
            self._process.start()
        except (EOFError, OSError) as error:
            raise RuntimeCrashed(
                "no process could be started for the step, because the toolchain did not load or ended; the worker's "
                "log has the reason, and `olivepress doctor` what is installed"
            ) from error
        theirs.close()
        self.peak_rss_bytes = 0

    @property
    def connection(self) -> Connection:
        """What to wait on for messages."""
        return self._connection

    def receive(self, timeout_s: float) -> Message | None:
        """The next message; None after the timeout.

        Raises:
            EOFError: the child ended without saying how it went.
        """
        if not self._connection.poll(timeout_s):
            return None
        message: Message = self._connection.recv()
        return message

    def sample_memory(self) -> None:
        """Add the present RSS of the child and its descendants to the peak."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self._process.pid)
            family = [process, *process.children(recursive=True)]
            total = 0
            for member in family:
                with contextlib.suppress(psutil.Error):
                    total += member.memory_info().rss
            self.peak_rss_bytes = max(self.peak_rss_bytes, total)

    def end(self) -> None:
        """Kill whatever is left of the child: its whole process group, and it itself if it had not made one yet."""
        pid = self._process.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self._process.kill()
        self._process.join(END_WITHIN_S)
        self._connection.close()

    def exit_code(self) -> int | None:
        """The exit code after its end; negative: the signal that ended it."""
        return self._process.exitcode
