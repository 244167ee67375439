"""What a finished step sets free: the next step of its job, from memory as far as the keys are known, else queued."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, or_, select, update
from sqlalchemy.orm import Session

from olivepress import jobs
from olivepress.database import conclusions, costs, rungs
from olivepress.database.sessions import DatabaseNow, seconds_now
from olivepress.database.tables import CalibrationRow, JobRow, Json, PromptSetRow, RememberedRow, StepRow, WorkerRow
from olivepress.errors import GateFailed
from olivepress.gates import Verdict
from olivepress.jobs import JobKind, StepKind, StepState
from olivepress.recipes.recipe import Recipe
from olivepress.settings import DEFAULT_POOL
from olivepress.steps import ONCE_A_JOB, Done, JobFacts, SourcePlace, StepResult, key_of

# Whether the store still has an artifact whole, by its digest.
HasArtifact = Callable[[str], bool]


@dataclass(frozen=True)
class Offer:
    """What a worker can run: its pools, memory for each step, and the fingerprints under which keys may be fixed."""

    worker_id: str
    fingerprint: str
    timed_fingerprint: str
    """The toolchain on this class of hardware: what a measurement depends on."""
    pools: tuple[str, ...] = (DEFAULT_POOL,)
    allowance_bytes: int = 2**40
    signs: bool = False
    """Whether it has the signing key."""

    @classmethod
    def of(cls, worker: WorkerRow) -> "Offer":
        """What a worker's row says that it can run."""
        return cls(
            worker_id=worker.id,
            fingerprint=worker.fingerprint,
            timed_fingerprint=worker.timed_fingerprint,
            pools=tuple(worker.pools),
            allowance_bytes=worker.allowance_bytes,
            signs=worker.signing_key is not None,
        )

    def fingerprint_for(self, kind: StepKind) -> str | None:
        """The fingerprint that enters a step's key; None where the result does not depend on the toolchain."""
        if kind is StepKind.INGEST or kind in jobs.PUBLISHING_STEPS:
            return None
        return self.timed_fingerprint if kind is StepKind.VALIDATE else self.fingerprint


def job_facts(session: Session, job_id: int) -> JobFacts:
    """What the steps of a job need to know of it."""
    job = session.get_one(JobRow, job_id)
    prompts = session.get_one(PromptSetRow, job.prompts_digest).prompts if job.prompts_digest else []
    recipe, text = Recipe.from_dict(job.recipe), None
    particulars: Json = job.particulars or {}
    # Megabytes, and this is read whenever a step of the job ends.
    if job.calibration_digest and recipe.needs_calibration:
        text = session.get_one(CalibrationRow, job.calibration_digest).entries
    return JobFacts(
        kind=JobKind(job.kind),
        calibration=text,
        calibration_digest=job.calibration_digest,
        soak=job.soak,
        family=particulars.get("family"),
        made_from=SourcePlace(**particulars["source"]) if "source" in particulars else None,
        batch_id=job.batch_id,
        checkpoint_path=job.checkpoint_path,
        base_path=job.base_path,
        chat_template=job.chat_template,
        recipe=recipe,
        prompts=prompts,
        prompts_digest=job.prompts_digest,
    )


def done_steps(session: Session, job_id: int) -> Done:
    """The results of a job's succeeded steps, of its ladder those of the rung that it is on."""
    query = (
        select(StepRow)
        .join(JobRow, JobRow.id == StepRow.job_id)
        .where(StepRow.job_id == job_id, StepRow.state == StepState.SUCCEEDED)
        .where(or_(StepRow.rung == JobRow.rung, StepRow.kind.in_(ONCE_A_JOB)))
    )
    return {StepKind(row.kind): StepResult(row.result or {}, row.artifact_digest) for row in session.scalars(query)}


def recall(session: Session, key: str, has_artifact: HasArtifact) -> RememberedRow | None:
    """What this key gave before; a key whose artifact the store has no more counts as a miss."""
    known = session.get(RememberedRow, key)
    if known is not None and known.artifact_digest and not has_artifact(known.artifact_digest):
        return None
    return known


def advance(session: Session, job_id: int, offer: Offer, has_artifact: HasArtifact) -> None:
    """Unblock the next step of a job: from memory as far as the keys are known, then queued.

    Where gates failed, those of the ladder's next rung; without one the job has failed, once the report is sealed
    where it is to be.
    """
    session.flush()
    job = session.get_one(JobRow, job_id)
    while True:
        facts, done = job_facts(session, job_id), dict(done_steps(session, job_id))
        _queue_next(session, job, facts, done, offer, has_artifact)
        failed = failed_gates(done)
        if not failed or job.cancel_requested or not rungs.climb(session, job):
            break
    if failed and not job.cancel_requested and not _waits_for_seal(session, job_id):
        _fail_by_gates(session, job, failed)
    if facts.kind.measures_again and StepKind.VALIDATE in done and StepKind.SEAL not in done:
        conclusions.conclude(session, job, failed)
    session.flush()
    refresh_job(session, job_id)


def _queue_next(
    session: Session,
    job: JobRow,
    facts: JobFacts,
    done: dict[StepKind, StepResult],
    offer: Offer,
    has_artifact: HasArtifact,
) -> None:
    """Queue the job's next step that memory does not answer; `done` takes in what memory did."""
    is_ours = StepRow.job_id == job.id
    blocked = session.scalars(
        select(StepRow).where(is_ours, StepRow.state == StepState.BLOCKED).order_by(StepRow.id).with_for_update()
    ).all()
    for row in sorted(blocked, key=lambda row: row.position):
        kind = StepKind(row.kind)
        session.flush()
        before = select(StepRow.id).where(
            is_ours, StepRow.position < row.position, StepRow.state != StepState.SUCCEEDED
        )
        # What failed is as much worth a signature as what passed.
        if session.scalar(before.limit(1)) is not None or (failed_gates(done) and kind is not StepKind.SEAL):
            return
        fingerprint = offer.fingerprint_for(kind)
        row.key, row.fingerprint = key_of(kind, facts, done, fingerprint or ""), fingerprint
        known = recall(session, row.key, has_artifact) if row.key else None
        if known is None or (job.is_fresh and kind is StepKind.VALIDATE):
            _queue(session, row, facts.recipe, done)
            return
        done[kind] = _remembered(session, row, known)


def rekey(session: Session, row: StepRow, offer: Offer, has_artifact: HasArtifact) -> None:
    """Give a queued step the key that a living worker's toolchain makes: the one of its key is gone."""
    kind = StepKind(row.kind)
    facts, done = job_facts(session, row.job_id), done_steps(session, row.job_id)
    row.fingerprint = offer.fingerprint_for(kind)
    row.key = key_of(kind, facts, done, row.fingerprint or "")
    row.signaled_at = row.signaled_to = None
    known = recall(session, row.key, has_artifact) if row.key else None
    if known is not None and not session.get_one(JobRow, row.job_id).is_fresh:
        _remembered(session, row, known)
    session.flush()
    advance(session, row.job_id, offer, has_artifact)


def refresh_job(session: Session, job_id: int) -> None:
    """Compute a job's state from its steps and store it."""
    session.flush()
    job = session.get_one(JobRow, job_id, populate_existing=True, with_for_update=True)
    states = [StepState(state) for state in session.scalars(select(StepRow.state).where(StepRow.job_id == job_id))]
    state = jobs.job_state(states, gate_failed=job.error_class == GateFailed.__name__)
    job.state = state
    if state in jobs.FINAL_JOB_STATES and job.finished_at is None:
        job.finished_at = seconds_now(session)
    session.flush()


def lock_waiting(session: Session, job_ids: Select[int] | list[int]) -> None:
    """Hold the steps of these jobs that did not start, so that nobody else moves them before the commit.

    Everybody who changes states locks steps first, in the order of their ids, then jobs: else two of them could wait
    for each other on PostgreSQL. On SQLite the one writer holds everything.
    """
    waiting = StepRow.state.in_([StepState.BLOCKED, StepState.QUEUED])
    rows = select(StepRow.id).where(StepRow.job_id.in_(job_ids), waiting).order_by(StepRow.id).with_for_update()
    session.scalar(count_of(rows))


def count_of(rows: Select[int]) -> Select[int]:
    """How many rows a query locks: locked in its order, without fetching them."""
    return select(func.count()).select_from(rows.subquery())


def cancel_waiting(session: Session, job_id: int) -> None:
    """The steps of a job that did not start are cancelled."""
    lock_waiting(session, [job_id])
    session.execute(
        update(StepRow)
        .where(StepRow.job_id == job_id, StepRow.state.in_([StepState.BLOCKED, StepState.QUEUED]))
        .values(state=StepState.CANCELLED, finished_at=DatabaseNow())
    )


def _queue(session: Session, row: StepRow, recipe: Recipe, done: Done) -> None:
    _move(row, StepState.QUEUED)
    cost = costs.predicted(session, StepKind(row.kind), recipe, done)
    row.memory_bytes, row.scratch_bytes, row.predicted_s = cost.memory_bytes, cost.scratch_bytes, cost.seconds
    row.run_at = seconds_now(session)


def _remembered(session: Session, row: StepRow, known: RememberedRow) -> StepResult:
    _move(row, StepState.SUCCEEDED)
    row.result, row.artifact_digest, row.reused_step_id = known.result, known.artifact_digest, known.step_id
    row.started_at = row.finished_at = seconds_now(session)
    return StepResult(known.result, known.artifact_digest)


def _move(row: StepRow, new: StepState) -> None:
    jobs.check_transition(StepState(row.state), new)
    row.state = new


def failed_gates(done: Done) -> list[dict[str, Any]]:
    """The gates that the validated artifact did not pass; empty also where it was not measured yet."""
    validated = done.get(StepKind.VALIDATE)
    if validated is None or validated.result["verdict"] == Verdict.PASSED:
        return []
    return [gate for gate in validated.result["report"]["gates"] if gate["verdict"] == Verdict.FAILED]


def _waits_for_seal(session: Session, job_id: int) -> bool:
    waiting = (StepRow.kind == StepKind.SEAL) & (StepRow.state == StepState.QUEUED)
    return session.scalar(select(StepRow.id).where(StepRow.job_id == job_id, waiting)) is not None


def _fail_by_gates(session: Session, job: JobRow, failed: list[dict[str, Any]]) -> None:
    """The artifact was measured and is not good enough: the job ends with the gates that failed."""
    tried = f" on the last of {len(job.ladder)} rungs ({job.recipe_name})" if job.ladder else ""
    job.error_class = GateFailed.__name__
    job.error_message = f"validate: gate failed{tried}: " + "; ".join(_gate_text(gate) for gate in failed)
    session.flush()
    cancel_waiting(session, job.id)


def _gate_text(gate: dict[str, Any]) -> str:
    text = f"{gate['name']} is {gate['figure']}, the limit {gate['limit']}"
    return f"{text} ({gate['note']})" if gate.get("note") else text
