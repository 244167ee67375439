"""The leader checks the store when the last full check is too old, in a thread of its own: it reads everything."""

import threading
import time

import structlog

from olivepress import store_check
from olivepress.database import store_checks
from olivepress.database.sessions import Database
from olivepress.errors import OlivepressError
from olivepress.settings import Settings
from olivepress.store import open_store
from olivepress.store_check import Fate

DAY_S = 86_400.0
# A stack that has just started has better things to do.
FIRST_AFTER_S = 900.0
LOOK_EVERY_S = 900.0
log = structlog.get_logger(__name__)


class StoreChecks:
    """When the store is checked next, and the thread in which it is."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._store = open_store(settings)
        # Whoever waits for a step has the cores first.
        self._store.threads = 1
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._look_at = time.monotonic() + FIRST_AFTER_S

    def run_when_due(self) -> bool:
        """Start a check if it is time for one; called with every tick of a leader. True if one was started."""
        is_off = self._settings.store_check_days == 0
        is_running = self._thread is not None and self._thread.is_alive()
        if is_off or is_running or self._stop.is_set() or time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + LOOK_EVERY_S
        with self._database.read() as session:
            since_s = store_checks.seconds_since_last(session, self._store.name)
        if since_s is not None and since_s < self._settings.store_check_days * DAY_S:
            return False
        self._thread = threading.Thread(target=self._run, name="store-check")
        self._thread.start()
        return True

    def stop(self) -> None:
        """End a check that is under way; the next one goes on where it was."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            report = store_check.check(self._database, self._store, must_stop=self._stop.is_set)
        except (OlivepressError, OSError) as error:
            log.warning("store_check_ended_early", error=str(error))
        except Exception:  # The edge of the thread: the scheduler goes on without it.
            log.exception("store_check_broke")
        else:
            log.info("store_checked", sound=report.is_sound, read_bytes=report.scan.read_bytes)
            if not report.is_sound:
                hurt = [each.version.name for each in report.versions if each.fate is not Fate.WHOLE]
                log.warning("store_damaged", parts=len(report.healed), versions=hurt)
