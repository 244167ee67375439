"""The rows of an import: a batch with one job, whose first step reads the directory."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from olivepress.database.batches import known_batch, store_prompts
from olivepress.database.new_steps import steps_from_ingest
from olivepress.database.quotas import check_quota
from olivepress.database.sessions import seconds_now
from olivepress.database.tables import BatchRow, JobRow, Json
from olivepress.database.upsert import upsert
from olivepress.jobs import BatchId, JobId, JobKind, JobState
from olivepress.manifest import DomainPrompt
from olivepress.quotas import Wanted
from olivepress.recipes.recipe import Recipe
from olivepress.steps import SourcePlace, ingest_location, plan


@dataclass(frozen=True)
class WantedImport:
    """A directory or archive on a worker, and what it is to become."""

    team: str
    model_name: str
    path: str
    recipe: Recipe
    alias: str
    priority: int
    pool: str | None = None
    prompts: Sequence[DomainPrompt] = ()
    soak: Json | None = None
    family: str | None = None
    source: SourcePlace | None = None
    """The checkpoint that it was made from, to be held against it."""
    unvalidated: str | None = None
    """Why it is published without being measured; None: it is measured."""


def insert_import(session: Session, wanted: WantedImport, idempotency_key: str | None) -> tuple[BatchId, JobId, bool]:
    """Write the batch with its job and steps; the first is queued.

    Returns:
        Their ids, and whether they are new: the same key of the same team gives what it gave first.

    Raises:
        QuotaExceeded: the team has as much as it may have.
    """
    now = seconds_now(session)
    values = {
        "team": wanted.team,
        "name": f"import {wanted.model_name}",
        "idempotency_key": idempotency_key,
        "created_at": now,
    }
    new = upsert(session, BatchRow).values(values).on_conflict_do_nothing(index_elements=["team", "idempotency_key"])
    batch_id = session.scalar(new.returning(BatchRow.id))
    if batch_id is None:
        known = known_batch(session, wanted.team, idempotency_key or "")
        assert known is not None, "only the idempotency key can be taken"
        return known[0], known[1][0], False
    check_quota(session, wanted.team, Wanted(1))
    job = _job(session, batch_id, wanted, now)
    session.add(job)
    session.flush()
    location = ingest_location(batch_id, wanted.path, None, None, JobKind.IMPORT)
    is_validated, has_source = wanted.unvalidated is None, wanted.source is not None
    kinds = plan(JobKind.IMPORT, wanted.recipe, is_validated=is_validated, has_source=has_source)
    session.add_all(steps_from_ingest(job, [(kind, 0) for kind in kinds], location, now))
    session.flush()
    return BatchId(batch_id), JobId(job.id), True


def unvalidated_reason(session: Session, job_id: int) -> str | None:
    """Why a job publishes without measuring; None where it measures."""
    particulars: Json | None = session.scalars(select(JobRow.particulars).where(JobRow.id == job_id)).one()
    return (particulars or {}).get("unvalidated")


def _job(session: Session, batch_id: int, wanted: WantedImport, now: float) -> JobRow:
    job = JobRow(
        batch_id=batch_id,
        kind=JobKind.IMPORT.value,
        team=wanted.team,
        checkpoint_name=wanted.model_name,
        checkpoint_path=wanted.path,
        recipe_name=wanted.recipe.name,
        recipe=wanted.recipe.to_dict(),
        model_name=wanted.model_name,
        alias=wanted.alias,
        pool=wanted.pool,
        prompts_digest=store_prompts(session, list(wanted.prompts)) if wanted.prompts else None,
        priority=wanted.priority,
        is_fresh=False,
        state=JobState.QUEUED.value,
        cancel_requested=False,
        created_at=now,
    )
    # Left out where it is None: that would be stored as JSON's null.
    if wanted.soak:
        job.soak = wanted.soak
    source = asdict(wanted.source) if wanted.source else None
    particulars = {"family": wanted.family, "unvalidated": wanted.unvalidated, "source": source}
    if any(particulars.values()):
        job.particulars = {key: value for key, value in particulars.items() if value is not None}
    return job
