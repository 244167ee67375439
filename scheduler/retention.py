"""Every hour the leader removes what is too old to keep."""

import structlog

from olivepress import retention
from olivepress.database.sessions import Database
from olivepress.retention import Periods
from olivepress.settings import Settings
from olivepress.store import open_store
from scheduler.background import BackgroundWork

FIRST_AFTER_S = 60.0
log = structlog.get_logger(__name__)


class Retention(BackgroundWork):
    """When retention runs next, and the thread in which it does."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__("retention", min(FIRST_AFTER_S, settings.retention_every_s))
        self._settings = settings
        self._database = database

    def is_wanted(self) -> bool:
        """Every so often; set again by the run where it leaves something in the trash."""
        self.due_in(self._settings.retention_every_s)
        return self._settings.retention_every_s > 0

    def work(self) -> None:
        """One run of retention."""
        store = open_store(self._settings)
        report = retention.run(self._database, store, Periods.of(self._settings), self.stopping.is_set)
        removed = {kind.value: amount.count for kind, amount in report.amounts.items() if amount.count}
        freed_bytes = sum(amount.size_bytes for kind, amount in report.amounts.items() if kind in retention.FREEING)
        log.info("retention_done", freed_bytes=freed_bytes, waiting=report.waiting.count, **removed)
        if report.problem:
            log.warning("retention_incomplete", problem=report.problem)
        if report.waiting.count:
            self.due_within(self._settings.retention_settle_s)
