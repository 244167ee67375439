"""The leader checks the store when the last full check is too old: it reads everything."""

import structlog

from olivepress import store_check
from olivepress.database import store_checks
from olivepress.database.sessions import Database
from olivepress.settings import Settings
from olivepress.store import open_store
from olivepress.store_check import Fate
from scheduler.background import BackgroundWork

DAY_S = 86_400.0
FIRST_AFTER_S = 900.0
LOOK_EVERY_S = 900.0
log = structlog.get_logger(__name__)


class StoreChecks(BackgroundWork):
    """When the store is checked next, and the thread in which it is."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__("store_check", FIRST_AFTER_S)
        self._settings = settings
        self._database = database
        self._store = open_store(settings)
        # Whoever waits for a step has the cores first.
        self._store.threads = 1

    def is_wanted(self) -> bool:
        """Whether the last full check is too old, looked at now and then."""
        self.due_in(LOOK_EVERY_S)
        if self._settings.store_check_days == 0:
            return False
        with self._database.read() as session:
            since_s = store_checks.seconds_since_last(session, self._store.name)
        return since_s is None or since_s >= self._settings.store_check_days * DAY_S

    def work(self) -> None:
        """One full check, which leaves its report."""
        report = store_check.check(self._database, self._store, must_stop=self.stopping.is_set)
        log.info("store_checked", sound=report.is_sound, read_bytes=report.scan.read_bytes)
        if not report.is_sound:
            hurt = [each.version.name for each in report.versions if each.fate is not Fate.WHOLE]
            log.warning("store_damaged", parts=len(report.healed), versions=hurt)
