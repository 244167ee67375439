"""A batch becomes rows: its jobs, their steps and the prompts that they share."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from olivepress.database.sessions import DatabaseNow
from olivepress.database.tables import BatchRow, JobRow, PromptSetRow, StepRow
from olivepress.jobs import STEP_ORDER, BatchId, JobId, JobState, StepKind, StepState, digest_of
from olivepress.manifest import CheckpointEntry, DomainPrompt, Manifest
from olivepress.recipes import Recipe
from olivepress.settings import POOL
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
) -> tuple[BatchId, list[JobId]]:
    """Write a batch with its jobs and steps; the first step of each job is queued."""
    now = session.scalar(select(DatabaseNow())) or 0.0
    batch = BatchRow(team=manifest.team, name=manifest.name, idempotency_key=idempotency_key, created_at=now)
    session.add(batch)
    session.flush()
    shared_prompts = _store_prompts(session, manifest.prompts) if manifest.prompts else None
    recipes = {job.recipe.name: job.recipe.to_dict() for job in wanted}
    rows = [
        {
            "batch_id": batch.id,
            "team": manifest.team,
            "checkpoint_name": job.checkpoint_name,
            "checkpoint_path": job.entry.path,
            "base_path": job.entry.base,
            "recipe_name": job.recipe.name,
            "recipe": recipes[job.recipe.name],
            "model_name": job.model_name,
            "alias": manifest.alias,
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
    steps = [step for pair in zip(job_ids, rows, strict=True) for step in _steps(*pair)]
    # Without it the keys that are NULL would split the one statement into thousands.
    session.execute(insert(StepRow).execution_options(render_nulls=True), steps)
    return BatchId(batch.id), [JobId(job_id) for job_id in job_ids]


def _steps(job_id: int, job: dict[str, Any]) -> list[dict[str, Any]]:
    location = ingest_location(job["batch_id"], job["checkpoint_path"], job["base_path"])
    return [
        {
            "job_id": job_id,
            "kind": kind,
            "position": position,
            "state": StepState.QUEUED if position == 0 else StepState.BLOCKED,
            "pool": POOL,
            "priority": job["priority"],
            "key": location if kind is StepKind.INGEST else None,
            "run_at": job["created_at"],
            "fence": 0,
            "attempts": 0,
        }
        for position, kind in enumerate(STEP_ORDER)
    ]


def _store_prompts(session: Session, prompts: list[DomainPrompt]) -> str:
    values = [prompt.model_dump(mode="json", exclude_none=True) for prompt in prompts]
    digest = digest_of(values)
    if session.get(PromptSetRow, digest) is None:
        session.add(PromptSetRow(digest=digest, prompts=values))
        session.flush()
    return digest
