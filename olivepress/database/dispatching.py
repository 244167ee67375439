"""Which queued steps are signalled next, and to which worker: only a small window of them is ever in Redis."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from olivepress.database import signing_keys
from olivepress.database.sessions import DatabaseNow
from olivepress.database.tables import JobRow, StepRow, WorkerRow
from olivepress.database.workers import SENT_TO_FOR_S, alive
from olivepress.jobs import PUBLISHING_STEPS, StepId, StepKind, StepState
from olivepress.placement import WINDOW_PER_SLOT, Fairness, Need, Place, Room, Waiting, assign


@dataclass(frozen=True)
class Signal:
    """A step of which a worker should be told; `description` is what people read in Flower."""

    step_id: StepId
    kind: StepKind
    worker_id: str
    description: str


def rooms_of(session: Session, workers: Iterable[WorkerRow]) -> dict[str, Room]:
    """What each worker offers to each of its steps, by worker id."""
    is_signed = signing_keys.has_any(session)
    return {
        worker.id: Room(
            pools=frozenset(worker.pools),
            allowance_bytes=worker.allowance_bytes,
            fingerprints=frozenset({worker.fingerprint, worker.timed_fingerprint}),
            disk_free_bytes=worker.disk_free_bytes,
            may_publish=worker.signing_key is not None or not is_signed,
        )
        for worker in workers
    }


def need_of(row: StepRow) -> Need:
    """What a step asks of a worker."""
    return Need(row.memory_bytes, row.scratch_bytes, row.pool, row.fingerprint, row.kind in PUBLISHING_STEPS)


def fits(rooms: Iterable[Room]) -> ColumnElement[bool]:
    """Room.fits as a condition on steps, for any of the rooms."""
    return or_(
        *(
            and_(
                StepRow.memory_bytes <= room.allowance_bytes,
                StepRow.scratch_bytes <= room.disk_free_bytes,
                or_(StepRow.pool.is_(None), StepRow.pool.in_(sorted(room.pools))),
                or_(StepRow.fingerprint.is_(None), StepRow.fingerprint.in_(sorted(room.fingerprints))),
                *([] if room.may_publish else [StepRow.kind.not_in(PUBLISHING_STEPS)]),
            )
            for room in rooms
        )
    )


def next_signals(session: Session, fairness: Fairness, again_after_s: float) -> list[Signal]:
    """Mark the next steps as signalled and return them; the caller sends them after the commit.

    A step that was signalled `again_after_s` ago and still waits is signalled again: its message was lost. One that
    waits at a busy worker is signalled to another that has become idle.
    """
    places = _places(session, again_after_s)
    is_open = [place for place in places if place.is_open]
    if not is_open:
        return []
    known = [place.worker_id for place in places]
    full = [place.worker_id for place in places if place.is_full]
    sendable = _sendable(known, full if any(place.is_idle for place in places) else [], again_after_s)
    waiting = {
        team: _waiting(session, team, is_open, sendable, full)
        for team in session.scalars(select(StepRow.team).distinct().where(StepRow.state == StepState.QUEUED))
    }
    chosen = dict(
        assign({team: steps for team, steps in waiting.items() if steps}, places, _in_flight(session), fairness)
    )
    return _signalled(session, chosen)


def forget_signals(session: Session, step_ids: list[StepId]) -> None:
    """Redis did not take these signals: they are to be sent with the next tick."""
    session.execute(update(StepRow).where(StepRow.id.in_(step_ids)).values(signaled_at=None, signaled_to=None))


def _places(session: Session, again_after_s: float) -> list[Place]:
    """The living workers, each with what it runs and what it was told of."""
    runs = select(StepRow.worker_id, func.count()).where(StepRow.state == StepState.RUNNING).group_by(StepRow.worker_id)
    told = (
        select(StepRow.signaled_to, func.count())
        .where(StepRow.state == StepState.QUEUED, StepRow.signaled_at > DatabaseNow() - again_after_s)
        .group_by(StepRow.signaled_to)
    )
    running = dict(session.execute(runs).all())
    waiting = dict(session.execute(told).all())
    living = alive(session, SENT_TO_FOR_S)
    rooms = rooms_of(session, living)
    return [
        Place(
            row.id,
            rooms[row.id],
            row.slots,
            load=running.get(row.id, 0) + waiting.get(row.id, 0),
            running=running.get(row.id, 0),
        )
        for row in living
    ]


def _in_flight(session: Session) -> dict[str, int]:
    """Running steps by team, and those that were sent; a lost message counts until its step is claimed."""
    query = (
        select(StepRow.team, func.count())
        .where(
            or_(
                StepRow.state == StepState.RUNNING,
                and_(StepRow.signaled_at.is_not(None), StepRow.state == StepState.QUEUED),
            )
        )
        .group_by(StepRow.team)
    )
    return dict(session.execute(query).all())


def _sendable(known: list[str], full: list[str], again_after_s: float) -> ColumnElement[bool]:
    """Steps of which no worker was told, or one that is gone or did not take it in time, or one that is full."""
    return or_(
        StepRow.signaled_at.is_(None),
        StepRow.signaled_at <= DatabaseNow() - again_after_s,
        StepRow.signaled_to.not_in(known),
        StepRow.signaled_to.in_(full),
    )


def _waiting(
    session: Session, team: str, places: list[Place], sendable: ColumnElement[bool], full: list[str]
) -> list[Waiting]:
    """The first steps of a team that fit somewhere: for each class of workers as many as it has room for."""
    found: dict[int, StepRow] = {}
    for room in {place.room for place in places}:
        count = sum(place.slots * WINDOW_PER_SLOT - place.load for place in places if place.room == room)
        rows = session.scalars(_candidates(team, room).where(sendable).limit(count))
        found |= {row.id: row for row in rows}
    ordered = sorted(found.values(), key=lambda row: (row.rank, row.id))
    return [
        Waiting(StepId(row.id), need_of(row), row.signaled_to, waits_there=row.signaled_to in full) for row in ordered
    ]


def _candidates(team: str, room: Room) -> Select[StepRow]:
    twin, first = aliased(StepRow), aliased(StepRow)
    return (
        select(StepRow)
        .where(
            StepRow.state == StepState.QUEUED,
            StepRow.team == team,
            StepRow.run_at <= DatabaseNow(),
            fits([room]),
            # Of rows with one key one runs; the others wait for its result.
            ~exists().where(twin.key == StepRow.key, twin.state == StepState.RUNNING),
            ~exists().where(first.key == StepRow.key, first.state == StepState.QUEUED, first.id < StepRow.id),
        )
        .order_by(StepRow.rank, StepRow.id)
    )


def _signalled(session: Session, chosen: dict[StepId, str]) -> list[Signal]:
    # One that somebody changes right now is left to the next look: waiting for it could be waiting for each other.
    free = select(StepRow.id).where(StepRow.id.in_(list(chosen)), StepRow.state == StepState.QUEUED)
    locked = set(session.scalars(free.order_by(StepRow.id).with_for_update(skip_locked=True)))
    chosen = {step_id: worker_id for step_id, worker_id in chosen.items() if step_id in locked}
    by_worker: dict[str, list[StepId]] = {}
    for step_id, worker_id in chosen.items():
        by_worker.setdefault(worker_id, []).append(step_id)
    for worker_id, step_ids in by_worker.items():
        session.execute(
            update(StepRow)
            .where(StepRow.id.in_(step_ids))
            .values(signaled_at=DatabaseNow(), signaled_to=worker_id, unplaceable=None, unplaceable_since=None)
        )
    query = (
        select(StepRow.id, StepRow.kind, StepRow.job_id, JobRow.checkpoint_name, JobRow.recipe_name)
        .join(JobRow, JobRow.id == StepRow.job_id)
        .where(StepRow.id.in_(list(chosen)))
    )
    rows = {row.id: row for row in session.execute(query)}
    return [
        Signal(
            step_id,
            StepKind(rows[step_id].kind),
            worker_id,
            f"{rows[step_id].checkpoint_name}, {rows[step_id].recipe_name}, job {rows[step_id].job_id}",
        )
        for step_id, worker_id in chosen.items()
    ]
