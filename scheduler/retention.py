"""Every hour the leader removes what is too old to keep, in a thread of its own: a tick must not wait for it."""

import threading
import time

import structlog

from olivepress import retention
from olivepress.database.sessions import Database
from olivepress.errors import OlivepressError
from olivepress.retention import Periods
from olivepress.settings import Settings
from olivepress.store import open_store

# A stack that has just started has better things to do.
FIRST_AFTER_S = 60.0
log = structlog.get_logger(__name__)


class Retention:
    """When retention runs next, and the thread in which it does."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._due_at = time.monotonic() + min(FIRST_AFTER_S, settings.retention_every_s)

    def run_when_due(self) -> bool:
        """Start a run if it is time for one; called with every tick of a leader. True if one was started."""
        is_off = self._settings.retention_every_s == 0
        is_running = self._thread is not None and self._thread.is_alive()
        if is_off or is_running or self._stop.is_set() or time.monotonic() < self._due_at:
            return False
        # Set again by the run where it leaves something in the trash.
        self._due_at = time.monotonic() + self._settings.retention_every_s
        self._thread = threading.Thread(target=self._run, name="retention")
        self._thread.start()
        return True

    def stop(self) -> None:
        """End a run that is under way; the next one goes on where it was."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            store = open_store(self._settings)
            report = retention.run(self._database, store, Periods.of(self._settings), self._stop.is_set)
        except (OlivepressError, OSError) as error:
            log.warning("retention_ended_early", error=str(error))
        except Exception:  # The edge of the thread: the scheduler goes on without it.
            log.exception("retention_broke")
        else:
            removed = {kind.value: amount.count for kind, amount in report.amounts.items() if amount.count}
            freed_bytes = sum(amount.size_bytes for kind, amount in report.amounts.items() if kind in retention.FREEING)
            log.info("retention_done", freed_bytes=freed_bytes, waiting=report.waiting.count, **removed)
            if report.problem:
                log.warning("retention_incomplete", problem=report.problem)
            if report.waiting.count:
                self._due_at = min(self._due_at, time.monotonic() + self._settings.retention_settle_s)
