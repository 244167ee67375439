"""Use case: remove what is too old to keep, from the database and the store. A dry run and a run go by one plan."""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from olivepress.database import retention as rows
from olivepress.database.retention import RowKind
from olivepress.database.sessions import Database
from olivepress.database.workers import take_lease
from olivepress.errors import ServiceUnavailable, TransientError
from olivepress.settings import Settings
from olivepress.store import Store, collector_of
from olivepress.store.collecting import NONE, SETTLE_S, TEMPORARY_S, Amount, Emptied, StoreCollector, StorePlan

LEASE = "retention"
LEASE_S = 60.0
RENEW_EVERY_S = LEASE_S / 4
DAY_S = 86_400.0


class StoreKind(StrEnum):
    """What goes from the store."""

    ARTIFACTS = "artifacts"
    CHUNKS = "chunks"
    TEMPORARY = "temporary"
    TRASH = "trash"


Kind = RowKind | StoreKind
# Artifacts and chunks only move into the trash.
FREEING = frozenset({StoreKind.TEMPORARY, StoreKind.TRASH})


@dataclass(frozen=True)
class Periods:
    """How long each kind is kept, in seconds; None: for ever."""

    remembered_s: float | None = None
    attempts_s: float | None = None
    logs_s: float | None = None
    workers_s: float | None = None
    unreferenced_s: float | None = None
    settle_s: float = SETTLE_S

    @classmethod
    def of(cls, settings: Settings) -> "Periods":
        """The periods that are set; 0 is for ever."""
        return cls(
            remembered_s=settings.retention_remembered_days * DAY_S or None,
            attempts_s=settings.retention_attempts_days * DAY_S or None,
            logs_s=settings.retention_logs_days * DAY_S or None,
            workers_s=settings.retention_workers_days * DAY_S or None,
            unreferenced_s=settings.retention_unreferenced_days * DAY_S or None,
            settle_s=settings.retention_settle_s,
        )

    def kept_for_s(self, kind: Kind) -> float | None:
        """How long a kind is kept; None: for ever."""
        store_kinds = {
            StoreKind.ARTIFACTS: self.unreferenced_s,
            StoreKind.CHUNKS: self.unreferenced_s,
            StoreKind.TEMPORARY: TEMPORARY_S,
            StoreKind.TRASH: self.settle_s,
        }
        if isinstance(kind, StoreKind):
            return None if self.unreferenced_s is None else store_kinds[kind]
        return {
            RowKind.REMEMBERED: self.remembered_s,
            RowKind.ATTEMPTS: self.attempts_s,
            RowKind.LOGS: self.logs_s,
            RowKind.WORKERS: self.workers_s,
        }[kind]


@dataclass
class Report:
    """What went, or would go: artifacts and chunks into the trash, the rest for good."""

    is_dry_run: bool
    periods: Periods
    amounts: dict[Kind, Amount] = field(default_factory=dict)
    put_back: Amount = NONE
    """Found in the trash and relied on again."""
    waiting: Amount = NONE
    """In the trash until a later run removes it."""
    problem: str | None = None
    """Why something stays that might go, and what to do."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        kinds: list[Kind] = [*RowKind, *StoreKind]
        return {
            "dry_run": self.is_dry_run,
            "kinds": [
                {
                    "kind": kind.value,
                    "kept_for_s": self.periods.kept_for_s(kind),
                    "count": self.amounts.get(kind, NONE).count,
                    "size_bytes": self.amounts.get(kind, NONE).size_bytes,
                }
                for kind in kinds
            ],
            "put_back": {"count": self.put_back.count, "size_bytes": self.put_back.size_bytes},
            "waiting": {"count": self.waiting.count, "size_bytes": self.waiting.size_bytes},
            "problem": self.problem,
        }


def plan(database: Database, store: Store, periods: Periods) -> Report:
    """What `run` would remove now; removes nothing.

    Raises:
        ServiceUnavailable: the database does not answer.
    """
    report = Report(True, periods)
    for kind in RowKind:
        if (older_than_s := periods.kept_for_s(kind)) is not None:
            with database.read() as session:
                found = rows.count(session, kind, older_than_s)
            report.amounts[kind] = Amount(found.count, found.size_bytes)
    if periods.unreferenced_s is not None:
        collector = collector_of(store, periods.settle_s)
        planned = _store_plan(database, collector, periods.unreferenced_s, periods.remembered_s)
        report.amounts[StoreKind.ARTIFACTS] = planned.artifacts
        report.amounts[StoreKind.CHUNKS] = planned.chunk_files
        report.amounts[StoreKind.TEMPORARY] = collector.temporary()
        report.amounts[StoreKind.TRASH] = collector.trash()
        report.problem = planned.problem
    return report


def run(database: Database, store: Store, periods: Periods, must_stop: Callable[[], bool] = lambda: False) -> Report:
    """Remove what is too old. One at a time runs; one that was killed is gone on with by the next.

    Raises:
        TransientError: another run is under way, or `must_stop` said so.
        ServiceUnavailable: the database does not answer.
    """
    turn = Turn(database, must_stop)
    try:
        report = Report(False, periods)
        # Remembered results first: what they alone refer to goes in the same run.
        for kind in RowKind:
            if (older_than_s := periods.kept_for_s(kind)) is not None:
                removed = rows.remove(database, kind, older_than_s, turn.go_on)
                report.amounts[kind] = Amount(removed.count, removed.size_bytes)
        if periods.unreferenced_s is not None:
            _collect(database, store, collector_of(store, periods.settle_s, turn.go_on), report)
        return report
    finally:
        turn.give_back()


def _collect(database: Database, store: Store, collector: StoreCollector, report: Report) -> None:
    grace_s = report.periods.unreferenced_s or 0.0
    settled = collector.empty_trash()
    planned = _store_plan(database, collector, grace_s, report.periods.remembered_s)
    taken_out = collector.take_out(planned)
    now_settled = collector.empty_trash()
    emptied = Emptied(settled.removed + now_settled.removed, settled.put_back + now_settled.put_back)
    temporary = collector.temporary()
    store.sweep_temporary(TEMPORARY_S)
    report.amounts[StoreKind.ARTIFACTS] = taken_out.artifacts
    report.amounts[StoreKind.CHUNKS] = taken_out.chunks
    report.amounts[StoreKind.TEMPORARY] = temporary
    report.amounts[StoreKind.TRASH] = emptied.removed
    report.put_back, report.waiting, report.problem = emptied.put_back, now_settled.waiting, planned.problem


def _store_plan(database: Database, collector: StoreCollector, grace_s: float, remembered_s: float | None) -> StorePlan:
    def references() -> set[str]:
        with database.read() as session:
            return rows.references(session, remembered_s)

    def spare() -> set[str]:
        with database.read() as session:
            return rows.spare_references(session)

    return collector.plan(references, grace_s, spare)


class Turn:
    """The lease that makes one run wait for another, whichever process it is in.

    The removal itself does not rest on it: two at once would only do the same work twice.

    Raises: TransientError (it is somebody else's).
    """

    def __init__(self, database: Database, must_stop: Callable[[], bool], lease: str = LEASE) -> None:
        self._database = database
        self._lease = lease
        self._must_stop = must_stop
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._hold()

    def go_on(self) -> None:
        """Called between small pieces of work. Raises: TransientError, when it must not go on."""
        if self._must_stop():
            raise TransientError(f"{self._lease} was asked to stop; the next run goes on where this one was")
        if time.monotonic() - self._held_at >= RENEW_EVERY_S:
            self._hold()

    def give_back(self) -> None:
        """Let the next run begin at once."""
        with contextlib.suppress(ServiceUnavailable), self._database.write() as session:
            # Not "until now": the next run may begin in the same millisecond, the finest that SQLite's clock tells.
            take_lease(session, self._lease, self._holder, lease_s=-1.0)

    def _hold(self) -> None:
        with self._database.write() as session:
            is_ours = take_lease(session, self._lease, self._holder, LEASE_S)
        if not is_ours:
            raise TransientError(f"{self._lease} runs already in another process; try again when it is over")
        self._held_at = time.monotonic()
