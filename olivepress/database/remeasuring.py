"""Jobs that measure a published version again: their rows, what came of them, and what that says of the version."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from olivepress.database import signing_keys
from olivepress.database.batches import store_prompts
from olivepress.database.new_steps import blocked_step
from olivepress.database.sessions import seconds_now
from olivepress.database.tables import BatchRow, JobRow, Json, ModelRow, StepRow, VersionRow
from olivepress.database.unblocking import HasArtifact, Offer, advance
from olivepress.database.upsert import upsert
from olivepress.database.workers import pressing
from olivepress.errors import BadArtifact, PermanentError
from olivepress.evidence.report_seal import Measured
from olivepress.gates import parse_limits
from olivepress.jobs import BatchId, JobId, JobKind, JobState, StepKind, StepState
from olivepress.manifest import DomainPrompt
from olivepress.recipes.recipe import Recipe
from olivepress.steps import ONCE_A_JOB, plan

RUNTIME = "foundry-local-sdk"
"""The library whose version stands for the runtime's: it needs exactly one version of each of the others."""
NEEDED = (StepKind.INGEST, StepKind.PACKAGE)


@dataclass(frozen=True)
class Again:
    """Which version is measured again, why, and what differs from how it was measured first."""

    version_id: int
    kind: JobKind
    batch_name: str
    prompts: Sequence[DomainPrompt] = ()
    """None: those that it was asked first."""
    gates: Mapping[str, Any] = field(default_factory=dict)
    """In the place of the recipe's limits of these names."""
    soak: Json | None = None
    priority: int = 5
    pool: str | None = None
    runtime: str | None = None
    """Only a worker that has this version of the runtime is asked first."""
    idempotency_key: str | None = None


def insert_again(session: Session, again: Again, has_artifact: HasArtifact) -> tuple[BatchId, JobId] | None:
    """A batch with one job, whose steps before validate have the results of the job that published the version.

    What the source said goes in where the store still has it; the gates that need it bind nothing where not. Validate
    is queued at once and measures anew whatever is remembered.

    Returns:
        None if there is a batch of this idempotency key.

    Raises:
        PermanentError: nothing here tells how the version was made.
        BadArtifact: the store does not have the version's package any more.
        BadRecipe: a gate cannot be.
    """
    version = session.get_one(VersionRow, again.version_id)
    model = session.get_one(ModelRow, version.model_id)
    name = f"{model.name}:{version.number}"
    first = session.get(JobRow, version.job_id) if version.job_id is not None else None
    made = _made(session, first, name)
    if not has_artifact(made[StepKind.PACKAGE].artifact_digest or ""):
        raise BadArtifact(f"the store does not have all of {name}; `olivepress store check --repair` mends it")
    assert first is not None
    batch_id = _insert_batch(session, model.team, again)
    if batch_id is None:
        return None
    job = _insert_job(session, batch_id, first, again)
    _insert_steps(session, job, made, has_artifact)
    advance(session, job.id, _offer(session, again), has_artifact)
    return BatchId(batch_id), JobId(job.id)


def _made(session: Session, first: JobRow | None, name: str) -> dict[StepKind, StepRow]:
    """The succeeded steps of the job that published a version; of a ladder those of the rung that passed."""
    rows: dict[StepKind, StepRow] = {}
    if first is not None:
        query = select(StepRow).where(StepRow.job_id == first.id, StepRow.state == StepState.SUCCEEDED)
        for row in session.scalars(query):
            kind = StepKind(row.kind)
            if row.rung == first.rung or kind in ONCE_A_JOB:
                rows[kind] = row
    if any(kind not in rows for kind in NEEDED):
        raise PermanentError(
            f"the stack does not know how {name} was made, so it cannot measure it; pull it, and import the directory: "
            f"olivepress pull {name} --to DIR, olivepress import DIR"
        )
    return rows


def _insert_batch(session: Session, team: str, again: Again) -> int | None:
    values = {
        "team": team,
        "name": again.batch_name,
        "idempotency_key": again.idempotency_key,
        "created_at": seconds_now(session),
    }
    new = upsert(session, BatchRow).values(values).on_conflict_do_nothing(index_elements=["team", "idempotency_key"])
    batch_id: int | None = session.scalar(new.returning(BatchRow.id))
    return batch_id


def _insert_job(session: Session, batch_id: int, first: JobRow, again: Again) -> JobRow:
    recipe = first.recipe
    if again.gates:
        old = Recipe.from_dict(recipe)
        recipe = replace(old, gates=parse_limits(asdict(old.gates) | dict(again.gates))).to_dict()
    job = JobRow(
        batch_id=batch_id,
        kind=again.kind.value,
        subject_version_id=again.version_id,
        team=first.team,
        checkpoint_name=first.checkpoint_name,
        checkpoint_path=first.checkpoint_path,
        base_path=first.base_path,
        recipe_name=first.recipe_name,
        recipe=recipe,
        model_name=first.model_name,
        alias=first.alias,
        pool=again.pool,
        chat_template=first.chat_template,
        prompts_digest=store_prompts(session, list(again.prompts)) if again.prompts else first.prompts_digest,
        priority=again.priority,
        is_fresh=True,
        state=JobState.QUEUED.value,
        cancel_requested=False,
        created_at=seconds_now(session),
    )
    if again.soak:
        job.soak = again.soak
    if again.runtime:
        job.particulars = {"runtime": again.runtime}
    session.add(job)
    session.flush()
    return job


def _insert_steps(session: Session, job: JobRow, made: Mapping[StepKind, StepRow], has_artifact: HasArtifact) -> None:
    now = seconds_now(session)
    wanted = plan(JobKind(job.kind), Recipe.from_dict(job.recipe))
    is_kept = {kind: kind in made and _is_kept(made[kind], has_artifact) for kind in wanted}
    kinds = [kind for kind in wanted if kind is StepKind.VALIDATE or is_kept[kind]]
    if signing_keys.has_any(session):
        kinds.append(StepKind.SEAL)
    for position, kind in enumerate(kinds):
        step = blocked_step(job, kind, position, now)
        if kind not in (StepKind.VALIDATE, StepKind.SEAL):
            source = made[kind]
            step.state, step.key, step.fingerprint = StepState.SUCCEEDED.value, source.key, source.fingerprint
            step.result, step.artifact_digest = source.result, source.artifact_digest
            step.reused_step_id, step.started_at, step.finished_at = source.id, now, now
        session.add(step)
    session.flush()


def _is_kept(row: StepRow, has_artifact: HasArtifact) -> bool:
    return row.kind != StepKind.REFERENCE or has_artifact(row.artifact_digest or "")


def _offer(session: Session, again: Again) -> Offer:
    """The offer of a living worker, of which the step's key takes the toolchain; where none lives, of nobody.

    The scheduler gives a key that no living worker has made to the first that could take the step.
    """
    for worker in pressing(session):
        is_of_pool = again.pool is None or again.pool in worker.pools
        if is_of_pool and again.runtime in (None, worker.toolchain.get(RUNTIME)):
            return Offer.of(worker)
    return Offer("", "", "")


def measured_by(session: Session, job_id: int) -> Measured:
    """The version that a validation measured, as its report is signed for it."""
    job = session.get_one(JobRow, job_id)
    version = session.get_one(VersionRow, job.subject_version_id)
    return Measured(
        team=job.team,
        model=job.model_name,
        number=version.number,
        recipe=job.recipe_name,
        precision=version.precision,
        family=version.family,
        package_digest=version.package_digest,
        job_id=job_id,
    )


def validations(session: Session, version_ids: Sequence[int]) -> dict[int, list[Json]]:
    """What was measured again of these versions, by version id, oldest first; also what still runs."""
    result, sealed = StepRow.result, aliased(StepRow)
    query = (
        select(
            JobRow.subject_version_id,
            JobRow.id,
            JobRow.kind,
            JobRow.state,
            JobRow.created_at,
            JobRow.finished_at,
            JobRow.error_class,
            JobRow.error_message,
            result["verdict"].as_string().label("verdict"),
            result[("report", "certificate", "runtime", RUNTIME)].as_string().label("runtime"),
            sealed.result[("seal", "evidence", "key_id")].as_string().label("signed_by"),
        )
        .join(StepRow, (StepRow.job_id == JobRow.id) & (StepRow.kind == StepKind.VALIDATE))
        .outerjoin(sealed, (sealed.job_id == JobRow.id) & (sealed.kind == StepKind.SEAL))
        .where(JobRow.subject_version_id.in_(version_ids))
        .order_by(JobRow.id)
    )
    found: dict[int, list[Json]] = {}
    for row in session.execute(query):
        found.setdefault(row.subject_version_id, []).append(
            {
                "job_id": row.id,
                "kind": row.kind,
                "state": row.state,
                "verdict": row.verdict,
                "runtime": row.runtime,
                "signed_by": row.signed_by,
                "problem": row.error_message,
                "created_at": row.created_at,
                "finished_at": row.finished_at,
            }
        )
    return found
