"""A batch becomes rows: its jobs, their steps and the prompts that they share."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, BigInteger, Double, Text, case, insert, literal, select
from sqlalchemy.orm import Session

from olivepress.database.many_rows import many_rows
from olivepress.database.sessions import DatabaseNow
from olivepress.database.tables import BatchRow, JobRow, PromptSetRow, StepRow
from olivepress.database.upsert import upsert
from olivepress.jobs import STEP_ORDER, BatchId, JobId, JobState, StepState, digest_of, rank
from olivepress.manifest import CheckpointEntry, DomainPrompt, Manifest
from olivepress.recipes import Recipe
from olivepress.step_cost import INGEST_BYTES
from olivepress.steps import ingest_location


@dataclass(frozen=True)
class WantedJob:
    """One checkpoint with one recipe, and the names that they get."""

    entry: CheckpointEntry
    recipe: Recipe
    checkpoint_name: str
    model_name: str


def known_batch(session: Session, team: str, idempotency_key: str) -> tuple[BatchId, list[JobId]] | None:
    """The batch that this team submitted under this key, and its jobs."""
    query = select(BatchRow.id).where(BatchRow.team == team, BatchRow.idempotency_key == idempotency_key)
    batch_id = session.scalar(query)
    if batch_id is None:
        return None
    job_ids = session.scalars(select(JobRow.id).where(JobRow.batch_id == batch_id).order_by(JobRow.id))
    return BatchId(batch_id), [JobId(job_id) for job_id in job_ids]


def insert_batch(
    session: Session, manifest: Manifest, wanted: list[WantedJob], idempotency_key: str | None
) -> tuple[BatchId, list[JobId]] | None:
    """Write a batch with its jobs and steps; the first step of each job is queued.

    Returns:
        None if another submission of this team took the idempotency key first, also in this very moment.
    """
    now = session.scalar(select(DatabaseNow())) or 0.0
    values = {"team": manifest.team, "name": manifest.name, "idempotency_key": idempotency_key, "created_at": now}
    new = upsert(session, BatchRow).values(values).on_conflict_do_nothing(index_elements=["team", "idempotency_key"])
    batch_id = session.scalar(new.returning(BatchRow.id))
    if batch_id is None:
        return None
    job_ids = _insert_jobs(session, batch_id, manifest, wanted, now)
    locations = [ingest_location(batch_id, job.entry.path, job.entry.base, job.entry.chat_template) for job in wanted]
    _insert_steps(session, batch_id, manifest, dict(zip(job_ids, locations, strict=True)), now)
    return BatchId(batch_id), [JobId(job_id) for job_id in job_ids]


def _insert_jobs(session: Session, batch_id: int, manifest: Manifest, wanted: list[WantedJob], now: float) -> list[int]:
    """Ids of the new jobs, in the order of `wanted`."""
    recipes = list({job.recipe.name: job.recipe for job in wanted}.values())
    places = {recipe.name: place for place, recipe in enumerate(recipes)}
    shared_prompts = _store_prompts(session, manifest.prompts) if manifest.prompts else None
    found = many_rows(
        session,
        [
            (
                job.checkpoint_name,
                job.entry.path,
                job.entry.base,
                job.model_name,
                _store_prompts(session, job.entry.prompts) if job.entry.prompts else shared_prompts,
                places[job.recipe.name],
                job.entry.chat_template,
            )
            for job in wanted
        ],
    )
    by_recipe = [(found.number(5) == place, recipe) for place, recipe in enumerate(recipes)]
    values: dict[Any, Any] = {
        JobRow.batch_id: literal(batch_id),
        JobRow.team: literal(manifest.team),
        JobRow.checkpoint_name: found.text(0),
        JobRow.checkpoint_path: found.text(1),
        JobRow.base_path: found.text(2),
        JobRow.model_name: found.text(3),
        JobRow.prompts_digest: found.text(4),
        JobRow.chat_template: found.text(6),
        JobRow.recipe_name: case(*((is_it, literal(recipe.name)) for is_it, recipe in by_recipe)),
        JobRow.recipe: case(*((is_it, literal(recipe.to_dict(), JSON)) for is_it, recipe in by_recipe)),
        JobRow.alias: literal(manifest.alias),
        JobRow.pool: literal(manifest.pool, Text),
        JobRow.priority: literal(manifest.priority),
        JobRow.is_fresh: literal(manifest.fresh),
        JobRow.state: literal(JobState.QUEUED.value),
        JobRow.cancel_requested: literal(False),
        JobRow.created_at: literal(now, Double),
    }
    rows = select(*values.values()).order_by(found.order)
    session.execute(insert(JobRow).from_select(list(values), rows, include_defaults=False))
    # They went in one after the other, so their ids ascend as they do.
    return list(session.scalars(select(JobRow.id).where(JobRow.batch_id == batch_id).order_by(JobRow.id)))


def _insert_steps(session: Session, batch_id: int, manifest: Manifest, locations: dict[int, str], now: float) -> None:
    """The steps of all jobs of a batch, made inside the database; the first of each is queued.

    Args:
        locations: the key of each job's ingest, by job id.
    """
    found = many_rows(session, list(locations.items()))
    for position, kind in enumerate(STEP_ORDER):
        is_first = position == 0
        values: dict[Any, Any] = {
            StepRow.job_id: JobRow.id,
            StepRow.kind: literal(kind.value),
            StepRow.position: literal(position),
            StepRow.state: literal(StepState.QUEUED.value if is_first else StepState.BLOCKED.value),
            StepRow.team: JobRow.team,
            StepRow.pool: JobRow.pool,
            StepRow.rank: literal(rank(manifest.priority, position)),
            StepRow.memory_bytes: literal(INGEST_BYTES if is_first else 0, BigInteger),
            StepRow.scratch_bytes: literal(0, BigInteger),
            StepRow.run_at: literal(now, Double),
            StepRow.fence: literal(0),
            StepRow.attempts: literal(0),
        }
        if is_first:
            values[StepRow.key] = found.text(1)
            rows = select(*values.values()).where(JobRow.id == found.number(0)).order_by(found.order)
        else:
            rows = select(*values.values()).where(JobRow.batch_id == batch_id).order_by(JobRow.id)
        session.execute(insert(StepRow).from_select(list(values), rows, include_defaults=False))


def _store_prompts(session: Session, prompts: list[DomainPrompt]) -> str:
    values = [prompt.model_dump(mode="json", exclude_none=True) for prompt in prompts]
    digest = digest_of(values)
    row = {"digest": digest, "prompts": values}
    session.execute(upsert(session, PromptSetRow).values(row).on_conflict_do_nothing(index_elements=["digest"]))
    return digest
