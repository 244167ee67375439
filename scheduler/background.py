"""Work of the leader that a tick must not wait for: each kind in a thread of its own, one at a time."""

import threading
import time
from abc import ABC, abstractmethod

import structlog

from olivepress.errors import OlivepressError

log = structlog.get_logger(__name__)


class BackgroundWork(ABC):
    """When a kind of work is done next, and the thread in which it is.

    Args:
        name: of the work, for the log: `NAME_ended_early`, `NAME_broke`.
        first_after_s: a stack that has just started has better things to do.
    """

    def __init__(self, name: str, first_after_s: float) -> None:
        self.stopping = threading.Event()
        """Set: what is under way ends soon."""
        self._name = name
        self._thread: threading.Thread | None = None
        self._due_at = time.monotonic() + first_after_s

    @abstractmethod
    def is_wanted(self) -> bool:
        """Whether to begin now that it is due, called with a tick of the leader; says by `due_in` when it is next."""

    @abstractmethod
    def work(self) -> None:
        """Do it, in the thread; an error is logged, and the scheduler goes on."""

    def due_in(self, seconds: float) -> None:
        """Do it next after so many seconds."""
        self._due_at = time.monotonic() + seconds

    def due_within(self, seconds: float) -> None:
        """Do it next after so many seconds, or earlier if it is due by then."""
        self._due_at = min(self._due_at, time.monotonic() + seconds)

    def run_when_due(self) -> bool:
        """Start it if it is time; called with every tick of a leader. True if it was started."""
        is_running = self._thread is not None and self._thread.is_alive()
        if is_running or self.stopping.is_set() or time.monotonic() < self._due_at or not self.is_wanted():
            return False
        self._thread = threading.Thread(target=self._run, name=self._name)
        self._thread.start()
        return True

    def wait(self) -> None:
        """Until what was started is over."""
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        """End what is under way; the next time it goes on where it was."""
        self.stopping.set()
        self.wait()

    def _run(self) -> None:
        try:
            self.work()
        except (OlivepressError, OSError) as error:
            log.warning(f"{self._name}_ended_early", error=str(error))
        except Exception:  # The edge of the thread: the scheduler goes on without it.
            log.exception(f"{self._name}_broke")
