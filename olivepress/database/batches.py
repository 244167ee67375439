"""A batch becomes rows: its jobs, their steps and the prompts that they share."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Double, insert, literal, select
from sqlalchemy.orm import Session

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
    shared_prompts = _store_prompts(session, manifest.prompts) if manifest.prompts else None
    recipes = {name: recipe.to_dict() for name, recipe in {job.recipe.name: job.recipe for job in wanted}.items()}
    rows = [
        {
            "batch_id": batch_id,
            "team": manifest.team,
            "checkpoint_name": job.checkpoint_name,
            "checkpoint_path": job.entry.path,
            "base_path": job.entry.base,
            "recipe_name": job.recipe.name,
            "recipe": recipes[job.recipe.name],
            "model_name": job.model_name,
            "alias": manifest.alias,
            "pool": manifest.pool,
            "prompts_digest": _store_prompts(session, job.entry.prompts) if job.entry.prompts else shared_prompts,
            "priority": manifest.priority,
            "is_fresh": manifest.fresh,
            "state": JobState.QUEUED,
            "cancel_requested": False,
            "created_at": now,
        }
        for job in wanted
    ]
    returning = insert(JobRow).returning(JobRow.id, sort_by_parameter_order=True)
    job_ids = list(session.scalars(returning, rows))
    _insert_steps(session, batch_id, [_first_step(*pair) for pair in zip(job_ids, rows, strict=True)], now)
    return BatchId(batch_id), [JobId(job_id) for job_id in job_ids]


def _insert_steps(session: Session, batch_id: int, first: list[dict[str, Any]], now: float) -> None:
    """The steps of all jobs of a batch: the first of each is queued, the others are made inside the database."""
    # Without it the keys that are NULL would split the one statement into thousands.
    session.execute(insert(StepRow).execution_options(render_nulls=True), first)
    for position, kind in enumerate(STEP_ORDER[1:], start=1):
        values: dict[Any, Any] = {
            StepRow.job_id: JobRow.id,
            StepRow.kind: literal(kind.value),
            StepRow.position: literal(position),
            StepRow.state: literal(StepState.BLOCKED.value),
            StepRow.team: JobRow.team,
            StepRow.pool: JobRow.pool,
            # As jobs.rank computes it.
            StepRow.rank: literal(rank(0, position)) - 100 * JobRow.priority,
            StepRow.memory_bytes: literal(0, BigInteger),
            StepRow.scratch_bytes: literal(0, BigInteger),
            StepRow.run_at: literal(now, Double),
            StepRow.fence: literal(0),
            StepRow.attempts: literal(0),
        }
        jobs = select(*values.values()).where(JobRow.batch_id == batch_id).order_by(JobRow.id)
        session.execute(insert(StepRow).from_select(list(values), jobs, include_defaults=False))


def _first_step(job_id: int, job: dict[str, Any]) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "kind": STEP_ORDER[0],
        "position": 0,
        "state": StepState.QUEUED,
        "team": job["team"],
        "pool": job["pool"],
        "rank": rank(job["priority"], 0),
        "memory_bytes": INGEST_BYTES,
        "scratch_bytes": 0,
        "key": ingest_location(job["batch_id"], job["checkpoint_path"], job["base_path"]),
        "run_at": job["created_at"],
        "fence": 0,
        "attempts": 0,
    }


def _store_prompts(session: Session, prompts: list[DomainPrompt]) -> str:
    values = [prompt.model_dump(mode="json", exclude_none=True) for prompt in prompts]
    digest = digest_of(values)
    row = {"digest": digest, "prompts": values}
    session.execute(upsert(session, PromptSetRow).values(row).on_conflict_do_nothing(index_elements=["digest"]))
    return digest
