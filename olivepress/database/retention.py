"""What the database still refers to in the store, and which of its rows are too old to keep.

Rows go in transactions of BATCH_ROWS, found by one that only reads: on SQLite nobody waits for a long search.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CursorResult,
    Delete,
    Select,
    Update,
    and_,
    delete,
    exists,
    false,
    func,
    literal,
    or_,
    select,
    union,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from olivepress.database.deletion import has_files
from olivepress.database.sessions import Database, DatabaseNow
from olivepress.database.tables import AttemptRow, JobRow, RememberedRow, StepRow, VersionRow, WorkerRow
from olivepress.jobs import FINAL_JOB_STATES, FINAL_STEP_STATES, AttemptOutcome, StepKind

BATCH_ROWS = 500

IsOld = Callable[[float], ColumnElement[bool]]


class RowKind(StrEnum):
    """What goes from the database when it is old."""

    REMEMBERED = "remembered"
    ATTEMPTS = "attempts"
    LOGS = "logs"
    WORKERS = "workers"


@dataclass(frozen=True)
class Rows:
    """How many rows, and how long their texts are together."""

    count: int
    size_bytes: int


@dataclass(frozen=True)
class _Rule:
    """Which rows of one kind are old, and what becomes of them."""

    key: InstrumentedAttribute[Any]
    is_old: IsOld
    is_still_old: IsOld
    """Cheap, and enough for rows that were found to be old a moment ago."""
    size: ColumnElement[int]
    change: Callable[[], Delete | Update]


def references(session: Session, remembered_s: float | None) -> set[str]:
    """Digests of the artifacts that a version, a step of an unfinished job or a remembered result needs.

    A version needs what its source said, too: it is measured again against that, when the checkpoint may be gone. One
    that was deleted needs its own until its grace period is over.

    One statement, so one look: between two, a job could pass from its steps to its version and be seen by neither.

    Args:
        remembered_s: results remembered longer than this and not used since do not count; None: all count.
    """
    of_memory = _of_memory()
    if remembered_s is not None:
        of_memory = of_memory.where(~_is_forgettable(remembered_s))
    return set(session.scalars(union(*_of_files(), _of_sources(), of_memory)))


def spare_references(session: Session) -> set[str]:
    """Those of which nothing but time is lost when they are: what only memory or measuring again would take."""
    return set(session.scalars(union(_of_sources(), _of_memory()))) - set(session.scalars(union(*_of_files())))


def _of_files() -> list[Select[Any]]:
    """The artifacts of versions and of jobs that are not over."""
    of_steps = (
        select(StepRow.artifact_digest)
        .join(JobRow, JobRow.id == StepRow.job_id)
        .where(JobRow.state.not_in(FINAL_JOB_STATES), StepRow.artifact_digest.is_not(None))
    )
    columns = (VersionRow.artifact_digest, VersionRow.package_digest)
    return [of_steps, *(select(column).where(has_files()) for column in columns)]


def _of_memory() -> Select[Any]:
    return select(RememberedRow.artifact_digest).where(RememberedRow.artifact_digest.is_not(None))


def count(session: Session, kind: RowKind, older_than_s: float) -> Rows:
    """The rows of a kind that are older than this."""
    found = _old(_RULES[kind], older_than_s).subquery()
    rows, size_bytes = session.execute(select(func.count(), func.sum(found.c.size)).select_from(found)).one()
    return Rows(rows, int(size_bytes or 0))


def remove(database: Database, kind: RowKind, older_than_s: float, go_on: Callable[[], None]) -> Rows:
    """Remove the rows of a kind that are older than this (of logs: the text), a transaction for every BATCH_ROWS.

    Args:
        go_on: called between the transactions; what it raises ends the work.
    """
    rule, removed = _RULES[kind], Rows(0, 0)
    while True:
        go_on()
        with database.read() as session:
            found = session.execute(_old(rule, older_than_s).limit(BATCH_ROWS)).all()
        if not found:
            return removed
        with database.write() as session:
            chosen = rule.key.in_([row.key for row in found])
            result = session.execute(rule.change().where(chosen, rule.is_still_old(older_than_s)))
        assert isinstance(result, CursorResult)
        removed = Rows(removed.count + result.rowcount, removed.size_bytes + sum(row.size for row in found))
        if len(found) < BATCH_ROWS or result.rowcount == 0:
            return removed


def _old(rule: _Rule, older_than_s: float) -> Select[Any]:
    return select(rule.key.label("key"), rule.size.label("size")).where(rule.is_old(older_than_s))


def _before(time: ColumnElement[Any] | InstrumentedAttribute[Any], older_than_s: float) -> ColumnElement[bool]:
    return time < DatabaseNow() - older_than_s


def _of_sources() -> Select[Any]:
    """Artifacts of the reference steps of the jobs that published, or found published, a version that is kept."""
    return (
        select(StepRow.artifact_digest)
        .join(JobRow, JobRow.id == StepRow.job_id)
        .join(VersionRow, VersionRow.id == JobRow.version_id)
        .where(StepRow.kind == StepKind.REFERENCE, StepRow.artifact_digest.is_not(None), has_files())
    )


def _is_forgettable(older_than_s: float) -> ColumnElement[bool]:
    """Remembered long ago, and no step was given the result since; not what the source of a kept version said."""
    used = select(StepRow.reused_step_id).where(
        StepRow.reused_step_id.is_not(None), StepRow.finished_at >= DatabaseNow() - older_than_s
    )
    sources = _of_sources()
    is_of_version = and_(RememberedRow.kind == StepKind.REFERENCE, RememberedRow.artifact_digest.in_(sources))
    is_kept = or_(RememberedRow.step_id.in_(used), func.coalesce(is_of_version, false()))
    return and_(_before(RememberedRow.created_at, older_than_s), ~is_kept)


def _is_old_attempt(older_than_s: float) -> ColumnElement[bool]:
    """Of a step that finished long ago, and not its last one: that tells how the step ended."""
    later = aliased(AttemptRow)
    return and_(
        exists().where(
            StepRow.id == AttemptRow.step_id,
            StepRow.state.in_(FINAL_STEP_STATES),
            _before(StepRow.finished_at, older_than_s),
        ),
        exists().where(later.step_id == AttemptRow.step_id, later.fence > AttemptRow.fence),
    )


def _is_old_log(older_than_s: float) -> ColumnElement[bool]:
    """Of an attempt that succeeded: nobody looks for its error."""
    return and_(
        AttemptRow.outcome == AttemptOutcome.SUCCEEDED,
        AttemptRow.log_tail.is_not(None),
        _before(AttemptRow.finished_at, older_than_s),
    )


def _is_lost_worker(older_than_s: float) -> ColumnElement[bool]:
    """Not seen for long, and no attempt or step names it."""
    of_attempts = select(AttemptRow.worker_id)
    of_steps = select(StepRow.worker_id).where(StepRow.worker_id.is_not(None))
    return and_(
        _before(WorkerRow.seen_at, older_than_s), WorkerRow.id.not_in(of_attempts), WorkerRow.id.not_in(of_steps)
    )


_LOG_BYTES = func.coalesce(func.length(AttemptRow.log_tail), 0)
_RULES: dict[RowKind, _Rule] = {
    RowKind.REMEMBERED: _Rule(
        RememberedRow.key,
        _is_forgettable,
        # A run that was asked for anew replaces the row and makes it young.
        lambda older_than_s: _before(RememberedRow.created_at, older_than_s),
        literal(0),
        lambda: delete(RememberedRow),
    ),
    RowKind.ATTEMPTS: _Rule(
        AttemptRow.id,
        _is_old_attempt,
        # A finished step never runs again.
        lambda older_than_s: _before(AttemptRow.started_at, older_than_s),
        _LOG_BYTES,
        lambda: delete(AttemptRow),
    ),
    RowKind.LOGS: _Rule(
        AttemptRow.id,
        _is_old_log,
        _is_old_log,
        _LOG_BYTES,
        lambda: update(AttemptRow).values(log_tail=None, log_lines=0),
    ),
    RowKind.WORKERS: _Rule(
        WorkerRow.id,
        _is_lost_worker,
        # A machine that slept for a month is seen again.
        lambda older_than_s: _before(WorkerRow.seen_at, older_than_s),
        literal(0),
        lambda: delete(WorkerRow),
    ),
}
