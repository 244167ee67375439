"""Every change of a step's state: claim, heartbeat, finish, retry, cancel, rescue.

Each is one transaction of the caller. A worker's changes carry (id, fence, running) as their predicate: no row means
that the step is somebody else's by now, and the caller discards what it has.
"""

import random
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, and_, exists, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from olivepress import jobs
from olivepress.database.sessions import DatabaseNow
from olivepress.database.tables import AttemptRow, JobRow, PromptSetRow, RememberedRow, StepRow
from olivepress.errors import GateFailed
from olivepress.jobs import AttemptOutcome, StepId, StepKind, StepState, Verdict
from olivepress.recipes import Recipe
from olivepress.steps import Done, JobFacts, StepResult, key_of

_jitter = random.Random()


@dataclass(frozen=True)
class Offer:
    """What a worker can run: its pool, and the toolchain fingerprints under which keys may be fixed."""

    worker_id: str
    pool: str
    fingerprint: str
    timed_fingerprint: str
    """The toolchain on this class of hardware: what a measurement depends on."""

    def fingerprint_for(self, kind: StepKind) -> str | None:
        """The fingerprint that enters a step's key; None where the result does not depend on the toolchain."""
        if kind in (StepKind.INGEST, StepKind.PUBLISH):
            return None
        return self.timed_fingerprint if kind is StepKind.VALIDATE else self.fingerprint


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
            StepRow.pool == offer.pool,
            StepRow.run_at <= DatabaseNow(),
            or_(
                StepRow.fingerprint.is_(None),
                StepRow.fingerprint.in_([offer.fingerprint, offer.timed_fingerprint]),
            ),
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
    if row is None:
        return None
    attempt = AttemptRow(
        step_id=step_id,
        number=row.attempts,
        fence=row.fence,
        worker_id=offer.worker_id,
        started_at=session.scalar(select(DatabaseNow())),
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


def cancelled_steps(session: Session, worker_id: str) -> set[int]:
    """Steps that this worker runs and whose job somebody asked to cancel."""
    query = (
        select(StepRow.id)
        .join(JobRow, JobRow.id == StepRow.job_id)
        .where(StepRow.worker_id == worker_id, StepRow.state == StepState.RUNNING, JobRow.cancel_requested)
    )
    return set(session.scalars(query))


def job_facts(session: Session, job_id: int) -> JobFacts:
    """What the steps of a job need to know of it."""
    job = session.get_one(JobRow, job_id)
    prompts = session.get_one(PromptSetRow, job.prompts_digest).prompts if job.prompts_digest else []
    return JobFacts(
        batch_id=job.batch_id,
        checkpoint_path=job.checkpoint_path,
        base_path=job.base_path,
        recipe=Recipe.from_dict(job.recipe),
        prompts=prompts,
        prompts_digest=job.prompts_digest,
    )


def done_steps(session: Session, job_id: int) -> Done:
    """The results of a job's succeeded steps."""
    rows = session.scalars(select(StepRow).where(StepRow.job_id == job_id, StepRow.state == StepState.SUCCEEDED))
    return {StepKind(row.kind): StepResult(row.result or {}, row.artifact_digest) for row in rows}


def recall(session: Session, key: str) -> RememberedRow | None:
    """What this key gave before."""
    return session.get(RememberedRow, key)


def succeed(
    session: Session,
    held: Claim,
    result: StepResult,
    offer: Offer,
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
    values = _success_values(result, reused_step_id)
    if _count(session.execute(update(StepRow).where(_held(held)).values(**values))) != 1:
        return False
    _end_attempt(session, held, ending or Ending(AttemptOutcome.SUCCEEDED))
    if remember_as and reused_step_id is None:
        _remember(session, remember_as, held, result)
    touched = {held.job_id}
    if held.key:
        touched |= _complete_twins(session, held, result)
    for job_id in sorted(touched):
        advance(session, job_id, offer)
    return True


def fail(session: Session, held: Claim, ending: Ending, *, may_retry: bool) -> bool:
    """End a running step's attempt in error: queued again after a while, or failed, or dead after the last attempt.

    Returns:
        False if the step is no longer this worker's.
    """
    is_last = held.attempt >= jobs.MAX_ATTEMPTS
    values: dict[str, Any] = {
        "error_class": ending.error_class,
        "error_message": ending.error_message,
        "lease_expires_at": None,
        "worker_id": None,
        "signaled_at": None,
    }
    if may_retry and not is_last:
        values |= {
            "state": StepState.QUEUED,
            "run_at": DatabaseNow() + jobs.retry_delay_s(held.attempt, _jitter),
        }
    else:
        values |= {
            "state": StepState.DEAD if may_retry else StepState.FAILED,
            "finished_at": DatabaseNow(),
        }
    if _count(session.execute(update(StepRow).where(_held(held)).values(**values))) != 1:
        return False
    _end_attempt(session, held, ending)
    if values["state"] is not StepState.QUEUED:
        _cancel_waiting(session, held.job_id)
        _note_error(session, held.job_id, held.kind, ending)
    refresh_job(session, held.job_id)
    return True


def cancel_running(session: Session, held: Claim, ending: Ending) -> bool:
    """End a running step whose job was cancelled, and what waits for it."""
    values = {"state": StepState.CANCELLED, "finished_at": DatabaseNow(), "lease_expires_at": None}
    if _count(session.execute(update(StepRow).where(_held(held)).values(**values))) != 1:
        return False
    _end_attempt(session, held, ending)
    _cancel_waiting(session, held.job_id)
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
        "phase": None,
        "share": None,
    }
    if _count(session.execute(update(StepRow).where(_held(held)).values(**values))) != 1:
        return False
    _end_attempt(session, held, ending)
    refresh_job(session, held.job_id)
    return True


def cancel_job(session: Session, job_id: int) -> None:
    """Ask for the end of a job: waiting steps are cancelled now, a running one by its worker."""
    session.execute(update(JobRow).where(JobRow.id == job_id).values(cancel_requested=True))
    _cancel_waiting(session, job_id)
    refresh_job(session, job_id)


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


def advance(session: Session, job_id: int, offer: Offer) -> None:
    """Unblock the next step of a job: from memory as far as the keys are known, then queued."""
    job = session.get_one(JobRow, job_id)
    facts, done = job_facts(session, job_id), done_steps(session, job_id)
    blocked = session.scalars(
        select(StepRow).where(StepRow.job_id == job_id, StepRow.state == StepState.BLOCKED).order_by(StepRow.position)
    ).all()
    for row in blocked:
        kind = StepKind(row.kind)
        is_waiting = any(before not in done for before in jobs.STEP_ORDER[: row.position])
        if is_waiting or _stopped_by_gate(session, job, done):
            break
        fingerprint = offer.fingerprint_for(kind)
        row.key, row.fingerprint = key_of(kind, facts, done, fingerprint or ""), fingerprint
        known = recall(session, row.key) if row.key else None
        if known is None or (job.is_fresh and kind is StepKind.VALIDATE):
            _move(row, StepState.QUEUED)
            row.run_at = session.scalar(select(DatabaseNow())) or 0.0
            break
        _move(row, StepState.SUCCEEDED)
        row.result, row.artifact_digest, row.reused_step_id = known.result, known.artifact_digest, known.step_id
        row.started_at = row.finished_at = session.scalar(select(DatabaseNow()))
        done[kind] = StepResult(known.result, known.artifact_digest)
    _stopped_by_gate(session, job, done)
    session.flush()
    refresh_job(session, job_id)


def refresh_job(session: Session, job_id: int) -> None:
    """Compute a job's state from its steps and store it."""
    session.flush()
    job = session.get_one(JobRow, job_id, populate_existing=True)
    states = [StepState(state) for state in session.scalars(select(StepRow.state).where(StepRow.job_id == job_id))]
    state = jobs.job_state(states, gate_failed=job.error_class == GateFailed.__name__)
    job.state = state
    if state in jobs.FINAL_JOB_STATES and job.finished_at is None:
        job.finished_at = session.scalar(select(DatabaseNow()))
    session.flush()


def _held(held: Claim) -> ColumnElement[bool]:
    return and_(StepRow.id == held.step_id, StepRow.fence == held.fence, StepRow.state == StepState.RUNNING)


def _count(result: Any) -> int:
    assert isinstance(result, CursorResult)
    return result.rowcount


def _move(row: StepRow, new: StepState) -> None:
    jobs.check_transition(StepState(row.state), new)
    row.state = new


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


def _end_attempt(session: Session, held: Claim, ending: Ending) -> None:
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.step_id == held.step_id, AttemptRow.fence == held.fence)
        .values(
            outcome=ending.outcome,
            exit_code=ending.exit_code,
            signal=ending.signal,
            error_class=ending.error_class,
            error_message=ending.error_message,
            cpu_s=ending.cpu_s,
            peak_rss_bytes=ending.peak_rss_bytes,
            log_tail=ending.log_tail,
            finished_at=DatabaseNow(),
        )
    )


def _remember(session: Session, key: str, held: Claim, result: StepResult) -> None:
    dialect = session.get_bind().dialect.name
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    values = {
        "key": key,
        "kind": held.kind.value,
        "result": result.result,
        "artifact_digest": result.artifact_digest,
        "step_id": held.step_id,
        "created_at": DatabaseNow(),
    }
    # A run that was asked for anew (--fresh) replaces what was remembered.
    statement = insert(RememberedRow).values(values)
    session.execute(statement.on_conflict_do_update(index_elements=["key"], set_=values))


def _complete_twins(session: Session, held: Claim, result: StepResult) -> set[int]:
    """Steps of other jobs that waited for this key have their result now."""
    change = (
        update(StepRow)
        .where(StepRow.key == held.key, StepRow.state == StepState.QUEUED, StepRow.id != held.step_id)
        .values(**_success_values(result, held.step_id), started_at=DatabaseNow())
        .returning(StepRow.job_id)
    )
    return set(session.scalars(change))


def _cancel_waiting(session: Session, job_id: int) -> None:
    session.execute(
        update(StepRow)
        .where(StepRow.job_id == job_id, StepRow.state.in_([StepState.BLOCKED, StepState.QUEUED]))
        .values(state=StepState.CANCELLED, finished_at=DatabaseNow())
    )


def _note_error(session: Session, job_id: int, kind: StepKind, ending: Ending) -> None:
    message = f"{kind}: {ending.error_message}"
    session.execute(
        update(JobRow).where(JobRow.id == job_id).values(error_class=ending.error_class, error_message=message)
    )


def _stopped_by_gate(session: Session, job: JobRow, done: Done) -> bool:
    """True if the artifact was measured and is not good enough: the job ends with the gates that failed."""
    validated = done.get(StepKind.VALIDATE)
    if validated is None or validated.result["verdict"] == Verdict.PASSED:
        return False
    failed = [gate for gate in validated.result["report"]["gates"] if gate["verdict"] == Verdict.FAILED]
    job.error_class = GateFailed.__name__
    job.error_message = "validate: gate failed: " + "; ".join(_gate_text(gate) for gate in failed)
    session.flush()
    _cancel_waiting(session, job.id)
    return True


def _gate_text(gate: dict[str, Any]) -> str:
    text = f"{gate['name']} is {gate['figure']}, the limit {gate['limit']}"
    return f"{text} ({gate['note']})" if gate.get("note") else text
