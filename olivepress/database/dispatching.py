"""Which queued steps are signalled next: only a small window of them is ever in Redis."""

from dataclasses import dataclass

from sqlalchemy import exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from olivepress.database.sessions import DatabaseNow
from olivepress.database.tables import JobRow, StepRow
from olivepress.database.workers import alive
from olivepress.jobs import StepId, StepKind, StepState

WINDOW_PER_SLOT = 2


@dataclass(frozen=True)
class Signal:
    """A step that a worker should be told of; `description` is what people read in Flower."""

    step_id: StepId
    kind: StepKind
    pool: str
    description: str


def slots_by_pool(session: Session) -> dict[str, int]:
    """How many steps the living workers of each pool run at a time."""
    slots: dict[str, int] = {}
    for worker in alive(session):
        slots[worker.pool] = slots.get(worker.pool, 0) + worker.slots
    return slots


def next_signals(session: Session, pool: str, slots: int, again_after_s: float) -> list[Signal]:
    """Mark the next steps of a pool as signalled and return them; the caller sends them after the commit.

    Steps of jobs that are further along go first, so that a batch's first models come early. A step that was
    signalled `again_after_s` ago and still waits is signalled again: its message was lost.
    """
    now = DatabaseNow()
    waiting = select(func.count()).where(
        StepRow.state == StepState.QUEUED, StepRow.pool == pool, StepRow.signaled_at > now - again_after_s
    )
    room = WINDOW_PER_SLOT * slots - (session.scalar(waiting) or 0)
    if room <= 0:
        return []
    twin, first = aliased(StepRow), aliased(StepRow)
    query = (
        select(StepRow, JobRow.model_name)
        .join(JobRow, JobRow.id == StepRow.job_id)
        .where(
            StepRow.state == StepState.QUEUED,
            StepRow.pool == pool,
            StepRow.run_at <= now,
            or_(StepRow.signaled_at.is_(None), StepRow.signaled_at <= now - again_after_s),
            # Of rows with one key one runs; the others wait for its result.
            ~exists().where(twin.key == StepRow.key, twin.state == StepState.RUNNING),
            ~exists().where(first.key == StepRow.key, first.state == StepState.QUEUED, first.id < StepRow.id),
        )
        .order_by(StepRow.priority.desc(), StepRow.position.desc(), StepRow.id)
        .limit(room)
    )
    rows = session.execute(query).all()
    session.execute(update(StepRow).where(StepRow.id.in_([row.id for row, _ in rows])).values(signaled_at=now))
    return [
        Signal(StepId(row.id), StepKind(row.kind), row.pool, f"job {row.job_id}, {model_name}")
        for row, model_name in rows
    ]


def forget_signals(session: Session, step_ids: list[StepId]) -> None:
    """Redis did not take these signals: they are to be sent with the next tick."""
    session.execute(update(StepRow).where(StepRow.id.in_(step_ids)).values(signaled_at=None))
