"""Every change of a step's state by a worker or the scheduler: claim, heartbeat, finish, retry, rescue.

Each is one transaction of the caller. A worker's changes carry (id, fence, running) as their predicate: no row means
that the step is somebody else's by now, and the caller discards what it has.
"""

import random
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, and_, exists, func, or_, select, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session, aliased

from olivepress import jobs
from olivepress.database import conclusions, costs, signing_keys
from olivepress.database.sessions import DatabaseNow, seconds_now
from olivepress.database.table import clean_values
from olivepress.database.tables import AttemptRow, JobRow, RememberedRow, StepRow
from olivepress.database.unblocking import (
    HasArtifact,
    Offer,
    advance,
    cancel_waiting,
    count_of,
    done_steps,
    refresh_job,
)
from olivepress.database.upsert import upsert
from olivepress.database.workers import alive
from olivepress.errors import NoRoom
from olivepress.jobs import AttemptOutcome, StepId, StepKind, StepState
from olivepress.placement import gib
from olivepress.recipes.recipe import Recipe
from olivepress.step_cost import StepCost
from olivepress.steps import StepResult

DEADLOCK = "40P01"
_jitter = random.Random()


@dataclass(frozen=True)
class Claim:
    """A step that this worker runs: nobody else's result counts while the fence is unchanged."""

    step_id: StepId
    job_id: int
    kind: StepKind
    fence: int
    attempt: int
    key: str | None


@dataclass(frozen=True)
class Ending:
    """What an attempt leaves in its row."""

    outcome: AttemptOutcome
    exit_code: int | None = None
    signal: int | None = None
    error_class: str | None = None
    error_message: str | None = None
    cpu_s: float | None = None
    peak_rss_bytes: int | None = None
    log_tail: str | None = None


def claim(session: Session, step_id: StepId, offer: Offer) -> Claim | None:
    """Take a queued step; None if it is not there to be taken (any more, or not by this worker)."""
    twin = aliased(StepRow)
    takeable = (
        select(StepRow.id)
        .where(
            StepRow.id == step_id,
            StepRow.state == StepState.QUEUED,
            StepRow.memory_bytes <= offer.allowance_bytes,
            or_(StepRow.pool.is_(None), StepRow.pool.in_(offer.pools)),
            StepRow.run_at <= DatabaseNow(),
            or_(StepRow.fingerprint.is_(None), StepRow.fingerprint.in_([offer.fingerprint, offer.timed_fingerprint])),
            signing_keys.lets_claim(offer.signs),
            ~exists().where(twin.key == StepRow.key, twin.state == StepState.RUNNING),
        )
        .with_for_update(skip_locked=True)
    )
    change = (
        update(StepRow)
        .where(StepRow.id.in_(takeable), StepRow.state == StepState.QUEUED)
        .values(
            state=StepState.RUNNING,
            fence=StepRow.fence + 1,
            attempts=StepRow.attempts + 1,
            lease_expires_at=DatabaseNow() + jobs.LEASE_S,
            worker_id=offer.worker_id,
            started_at=func.coalesce(StepRow.started_at, DatabaseNow()),
            phase=None,
            share=None,
        )
        .returning(StepRow.job_id, StepRow.kind, StepRow.fence, StepRow.attempts, StepRow.key)
    )
    try:
        with session.begin_nested():
            row = session.execute(change).one_or_none()
    except IntegrityError:
        # Two workers took two rows of one key in the same moment; the index let one through.
        return None
    except OperationalError as error:
        # Whoever finishes the other row waits for this one, to give it the result, and this one for the index.
        if getattr(error.orig, "sqlstate", None) != DEADLOCK:
            raise
        return None
    if row is None:
        return None
    attempt = AttemptRow(
        step_id=step_id,
        number=row.attempts,
        fence=row.fence,
        worker_id=offer.worker_id,
        allowance_bytes=offer.allowance_bytes,
        started_at=seconds_now(session),
    )
    session.add(attempt)
    refresh_job(session, row.job_id)
    return Claim(step_id, row.job_id, StepKind(row.kind), row.fence, row.attempts, row.key)


def heartbeat(session: Session, held: Claim, phase: str | None, share: float | None) -> bool:
    """Extend the lease and note the progress; False if the step is no longer this worker's."""
    change = (
        update(StepRow)
        .where(_held(held))
        .values(lease_expires_at=DatabaseNow() + jobs.LEASE_S, phase=phase, share=share)
    )
    return _count(session.execute(change)) == 1


def succeed(
    session: Session,
    held: Claim,
    result: StepResult,
    offer: Offer,
    has_artifact: HasArtifact,
    *,
    ending: Ending | None = None,
    remember_as: str | None = None,
    reused_step_id: int | None = None,
) -> bool:
    """Finish a running step with its result and unblock what waits for it.

    Args:
        remember_as: the key under which the result is remembered; None: not at all.
        reused_step_id: the step whose remembered result this is.

    Returns:
        False if the step is no longer this worker's: the result must be discarded.
    """
    result = _cleaned(result)
    values = _success_values(result, reused_step_id)
    if held.key:
        _lock_twins(session, held.key)
    if _count(session.execute(update(StepRow).where(_held(held)).values(**values))) != 1:
        return False
    ending = ending or Ending(AttemptOutcome.SUCCEEDED)
    _end_attempt(session, held, ending)
    _learn(session, held, ending)
    if remember_as and reused_step_id is None:
        _remember(session, remember_as, held, result)
    touched = {held.job_id}
    if held.key:
        touched |= _complete_twins(session, held, result)
    for job_id in sorted(touched):
        advance(session, job_id, offer, has_artifact)
    return True


def fail(session: Session, held: Claim, ending: Ending, *, may_retry: bool) -> bool:
    """End a running step's attempt in error: queued again after a while, or failed, or dead after the last attempt.

    One that ran out of memory is tried once more, by a worker that gives a step more, if there is one.

    Returns:
        False if the step is no longer this worker's.
    """
    values: dict[str, Any] = {"lease_expires_at": None, "worker_id": None, "signaled_at": None, "signaled_to": None}
    if ending.outcome is AttemptOutcome.OUT_OF_MEMORY:
        ending, more = _more_memory(session, held, ending)
        values |= more
        may_retry = may_retry and bool(more)
    values |= {"error_class": ending.error_class, "error_message": ending.error_message}
    if may_retry and held.attempt < jobs.MAX_ATTEMPTS:
        # A worker that died says nothing about the step: another need not wait.
        is_lost = ending.outcome is AttemptOutcome.LEASE_LOST
        delay_s = 0.0 if is_lost else jobs.retry_delay_s(held.attempt, _jitter)
        values |= {"state": StepState.QUEUED, "run_at": DatabaseNow() + delay_s}
    else:
        values |= {
            "state": StepState.DEAD if may_retry else StepState.FAILED,
            "finished_at": DatabaseNow(),
        }
    if _count(session.execute(update(StepRow).where(_held(held)).values(**values))) != 1:
        return False
    _end_attempt(session, held, ending)
    if values["state"] is not StepState.QUEUED:
        cancel_waiting(session, held.job_id)
        _note_error(session, held.job_id, held.kind, ending)
        conclusions.conclude_broken(session, held.job_id, ending.error_class, ending.error_message)
    refresh_job(session, held.job_id)
    return True


def fail_waiting(session: Session, row: StepRow, message: str) -> None:
    """Fail a queued step that no worker could take, and its job."""
    jobs.check_transition(StepState(row.state), StepState.FAILED)
    row.state, row.error_class, row.error_message = StepState.FAILED, NoRoom.__name__, message
    row.finished_at = seconds_now(session)
    session.flush()
    cancel_waiting(session, row.job_id)
    ending = Ending(AttemptOutcome.FAILED, error_class=NoRoom.__name__, error_message=message)
    _note_error(session, row.job_id, StepKind(row.kind), ending)
    refresh_job(session, row.job_id)


def cancel_running(session: Session, held: Claim, ending: Ending) -> bool:
    """End a running step whose job was cancelled, and what waits for it."""
    values = {"state": StepState.CANCELLED, "finished_at": DatabaseNow(), "lease_expires_at": None}
    if _count(session.execute(update(StepRow).where(_held(held)).values(**values))) != 1:
        return False
    _end_attempt(session, held, ending)
    cancel_waiting(session, held.job_id)
    refresh_job(session, held.job_id)
    return True


def hand_back(session: Session, held: Claim, ending: Ending) -> bool:
    """Give a running step back to the queue at once: this worker shuts down. The attempt does not count."""
    values = {
        "state": StepState.QUEUED,
        "attempts": StepRow.attempts - 1,
        "lease_expires_at": None,
        "worker_id": None,
        "signaled_at": None,
        "signaled_to": None,
        "phase": None,
        "share": None,
    }
    if _count(session.execute(update(StepRow).where(_held(held)).values(**values))) != 1:
        return False
    _end_attempt(session, held, ending)
    refresh_job(session, held.job_id)
    return True


def rescue(session: Session, worker_ids: list[str] | None = None) -> list[int]:
    """Take running steps from workers that are gone: those whose lease ran out, or all of the given workers.

    Returns:
        Ids of the steps that were taken.
    """
    gone: ColumnElement[bool] = StepRow.lease_expires_at < DatabaseNow()
    if worker_ids is not None:
        gone = StepRow.worker_id.in_(worker_ids)
    query = select(StepRow).where(StepRow.state == StepState.RUNNING, gone).with_for_update(skip_locked=True)
    rescued = []
    for row in session.scalars(query).all():
        held = Claim(StepId(row.id), row.job_id, StepKind(row.kind), row.fence, row.attempts, row.key)
        ending = Ending(
            AttemptOutcome.LEASE_LOST,
            error_class="LeaseLost",
            error_message=f"the worker {row.worker_id} that ran this step is gone; its lease was given back",
        )
        if session.get_one(JobRow, row.job_id).cancel_requested:
            cancel_running(session, held, ending)
        else:
            fail(session, held, ending, may_retry=True)
        rescued.append(row.id)
    return rescued


def _held(held: Claim) -> ColumnElement[bool]:
    return and_(StepRow.id == held.step_id, StepRow.fence == held.fence, StepRow.state == StepState.RUNNING)


def _count(result: Any) -> int:
    assert isinstance(result, CursorResult)
    return result.rowcount


def _cleaned(result: StepResult) -> StepResult:
    return replace(result, result=clean_values(result.result))


def _success_values(result: StepResult, reused_step_id: int | None) -> dict[str, Any]:
    return {
        "state": StepState.SUCCEEDED,
        "result": result.result,
        "artifact_digest": result.artifact_digest,
        "reused_step_id": reused_step_id,
        "lease_expires_at": None,
        "share": 1.0,
        "error_class": None,
        "error_message": None,
        "finished_at": DatabaseNow(),
    }


def _more_memory(session: Session, held: Claim, ending: Ending) -> tuple[Ending, dict[str, Any]]:
    """What a step that ran out of memory asks for next; nothing if it did so before, or no worker gives a step more."""
    here = (AttemptRow.step_id == held.step_id) & (AttemptRow.fence == held.fence)
    allowance = session.scalar(select(AttemptRow.allowance_bytes).where(here)) or 0
    before = select(func.count()).where(
        AttemptRow.step_id == held.step_id, AttemptRow.outcome == AttemptOutcome.OUT_OF_MEMORY
    )
    if session.scalar(before):
        return ending, {}
    pool = session.scalars(select(StepRow.pool).where(StepRow.id == held.step_id)).one()
    given = [row.allowance_bytes for row in alive(session) if pool is None or pool in row.pools]
    largest = max(given, default=0)
    if largest <= allowance:
        where = f" in the pool '{pool}'" if pool else ""
        message = f"{ending.error_message}; no worker{where} gives a step more than {gib(max(largest, allowance))}"
        return replace(ending, error_message=message), {}
    wanted = max(allowance + 1, round(1.1 * (ending.peak_rss_bytes or 0)))
    return ending, {"memory_bytes": min(largest, wanted)}


def _end_attempt(session: Session, held: Claim, ending: Ending) -> None:
    measured = {"cpu_s": ending.cpu_s, "peak_rss_bytes": ending.peak_rss_bytes, "log_tail": ending.log_tail}
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.step_id == held.step_id, AttemptRow.fence == held.fence)
        .values(
            outcome=ending.outcome,
            exit_code=ending.exit_code,
            signal=ending.signal,
            error_class=ending.error_class,
            error_message=ending.error_message,
            finished_at=DatabaseNow(),
            # Of a worker that is gone they hold what it noted while the step ran.
            **{name: value for name, value in measured.items() if value is not None},
        )
    )


def _learn(session: Session, held: Claim, ending: Ending) -> None:
    """What the attempt took corrects the predictions for its family."""
    if ending.peak_rss_bytes is None:
        return
    query = select(AttemptRow.finished_at - AttemptRow.started_at).where(
        AttemptRow.step_id == held.step_id, AttemptRow.fence == held.fence
    )
    used = StepCost(ending.peak_rss_bytes, 0, session.scalar(query))
    recipe = Recipe.from_dict(session.get_one(JobRow, held.job_id).recipe)
    costs.learn(session, held.kind, recipe, done_steps(session, held.job_id), used)


def _remember(session: Session, key: str, held: Claim, result: StepResult) -> None:
    values = {
        "key": key,
        "kind": held.kind.value,
        "result": result.result,
        "artifact_digest": result.artifact_digest,
        "step_id": held.step_id,
        "created_at": DatabaseNow(),
    }
    # A run that was asked for anew (--fresh) replaces what was remembered.
    statement = upsert(session, RememberedRow).values(values)
    session.execute(statement.on_conflict_do_update(index_elements=["key"], set_=values))


def _lock_twins(session: Session, key: str) -> None:
    """Hold the step of this key that runs and those that wait for it, before any of them changes.

    Who claims one of them in this moment waits for the index of running keys, thus for us, if we have changed ours
    already; and we would wait for the row that it took.
    """
    of_key = and_(StepRow.key == key, StepRow.state.in_([StepState.QUEUED, StepState.RUNNING]))
    session.scalar(count_of(select(StepRow.id).where(of_key).order_by(StepRow.id).with_for_update()))


def _complete_twins(session: Session, held: Claim, result: StepResult) -> set[int]:
    """Steps of other jobs that waited for this key have their result now."""
    _lock_twins(session, held.key or "")
    twins = and_(StepRow.key == held.key, StepRow.state == StepState.QUEUED, StepRow.id != held.step_id)
    change = (
        update(StepRow)
        .where(twins)
        .values(**_success_values(result, held.step_id), started_at=DatabaseNow())
        .returning(StepRow.job_id)
    )
    return set(session.scalars(change))


def _note_error(session: Session, job_id: int, kind: StepKind, ending: Ending) -> None:
    message = f"{kind}: {ending.error_message}"
    session.execute(
        update(JobRow).where(JobRow.id == job_id).values(error_class=ending.error_class, error_message=message)
    )
