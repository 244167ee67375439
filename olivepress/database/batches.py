"""A batch becomes rows: its jobs, their steps and the prompts that they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, BigInteger, Double, Text, case, insert, literal, null, select
from sqlalchemy.orm import Session

from olivepress.database.many_rows import many_rows
from olivepress.database.sessions import seconds_now
from olivepress.database.tables import BatchRow, CalibrationRow, JobRow, PromptSetRow, StepRow
from olivepress.database.upsert import upsert
from olivepress.jobs import PUBLISHING_STEPS, BatchId, JobId, JobKind, JobState, StepKind, StepState, digest_of, rank
from olivepress.manifest import CheckpointEntry, DomainPrompt, Manifest
from olivepress.recipes.calibration import CalibrationEntry
from olivepress.recipes.recipe import Recipe
from olivepress.soak import parse_soak
from olivepress.step_cost import INGEST_BYTES
from olivepress.steps import ingest_location, plan


@dataclass(frozen=True)
class Rung:
    """A recipe of a ladder, and what the model's name ends with where it is the one that passes."""

    recipe: Recipe
    suffix: str


@dataclass(frozen=True)
class WantedJob:
    """One checkpoint with one recipe, or on the first rung of a ladder, and the names that they get."""

    entry: CheckpointEntry
    recipe: Recipe
    checkpoint_name: str
    model_name: str


@dataclass(frozen=True)
class _NewBatch:
    id: int
    priority: int
    created_at: float


def known_batch(session: Session, team: str, idempotency_key: str) -> tuple[BatchId, list[JobId]] | None:
    """The batch that this team submitted under this key, and its jobs."""
    query = select(BatchRow.id).where(BatchRow.team == team, BatchRow.idempotency_key == idempotency_key)
    batch_id = session.scalar(query)
    if batch_id is None:
        return None
    job_ids = session.scalars(select(JobRow.id).where(JobRow.batch_id == batch_id).order_by(JobRow.id))
    return BatchId(batch_id), [JobId(job_id) for job_id in job_ids]


def insert_batch(
    session: Session,
    manifest: Manifest,
    wanted: list[WantedJob],
    idempotency_key: str | None,
    ladder: Sequence[Rung] = (),
) -> tuple[BatchId, list[JobId]] | None:
    """Write a batch with its jobs and steps; the first step of each job is queued.

    Args:
        ladder: that all jobs climb, if they do; the jobs then name the recipe of its first rung.

    Returns:
        None if another submission of this team took the idempotency key first, also in this very moment.
    """
    now = seconds_now(session)
    values = {"team": manifest.team, "name": manifest.name, "idempotency_key": idempotency_key, "created_at": now}
    new = upsert(session, BatchRow).values(values).on_conflict_do_nothing(index_elements=["team", "idempotency_key"])
    batch_id = session.scalar(new.returning(BatchRow.id))
    if batch_id is None:
        return None
    batch = _NewBatch(batch_id, manifest.priority, now)
    job_ids = _insert_jobs(session, batch, manifest, wanted, ladder)
    locations = [
        ingest_location(batch_id, job.entry.path, job.entry.base, job.entry.chat_template, JobKind.CONVERT)
        for job in wanted
    ]
    keys = dict(zip(job_ids, locations, strict=True))
    for steps, names in _plans(wanted).items():
        _insert_steps(session, batch, keys, steps, names)
    return BatchId(batch_id), [JobId(job_id) for job_id in job_ids]


def _plans(wanted: list[WantedJob]) -> dict[tuple[StepKind, ...], list[str]]:
    """The plans of a batch's jobs, each with the names of the recipes that have it."""
    found: dict[tuple[StepKind, ...], list[str]] = {}
    for recipe in {job.recipe.name: job.recipe for job in wanted}.values():
        found.setdefault(plan(JobKind.CONVERT, recipe), []).append(recipe.name)
    return found


def _insert_jobs(
    session: Session, batch: _NewBatch, manifest: Manifest, wanted: list[WantedJob], ladder: Sequence[Rung]
) -> list[int]:
    """Ids of the new jobs, in the order of `wanted`."""
    recipes = list({job.recipe.name: job.recipe for job in wanted}.values())
    found = many_rows(session, _job_values(session, manifest, wanted, [recipe.name for recipe in recipes]))
    rungs = [{"recipe": rung.recipe.to_dict(), "suffix": rung.suffix} for rung in ladder]
    soak = parse_soak(manifest.soak)
    by_recipe = [(found.number(5) == place, recipe) for place, recipe in enumerate(recipes)]
    values: dict[Any, Any] = {
        JobRow.batch_id: literal(batch.id),
        JobRow.kind: literal(JobKind.CONVERT.value),
        JobRow.rung: literal(0),
        JobRow.ladder: literal(rungs, JSON) if rungs else null(),
        JobRow.soak: literal(soak, JSON) if soak else null(),
        JobRow.calibration_digest: found.text(7),
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
        JobRow.created_at: literal(batch.created_at, Double),
    }
    rows = select(*values.values()).order_by(found.order)
    session.execute(insert(JobRow).from_select(list(values), rows, include_defaults=False))
    # They went in one after the other, so their ids ascend as they do.
    return list(session.scalars(select(JobRow.id).where(JobRow.batch_id == batch.id).order_by(JobRow.id)))


def _job_values(
    session: Session, manifest: Manifest, wanted: list[WantedJob], recipes: list[str]
) -> list[tuple[str | int | None, ...]]:
    """What jobs of one batch do not have in common, in the order in which `_insert_jobs` reads it.

    Args:
        recipes: names; a job has the place of its own.
    """
    shared_prompts = store_prompts(session, manifest.prompts) if manifest.prompts else None
    shared_text = _store_calibration(session, manifest.calibration) if manifest.calibration else None
    places = {name: place for place, name in enumerate(recipes)}
    return [
        (
            job.checkpoint_name,
            job.entry.path,
            job.entry.base,
            job.model_name,
            store_prompts(session, job.entry.prompts) if job.entry.prompts else shared_prompts,
            places[job.recipe.name],
            job.entry.chat_template,
            _store_calibration(session, job.entry.calibration) if job.entry.calibration else shared_text,
        )
        for job in wanted
    ]


def _insert_steps(
    session: Session, batch: _NewBatch, locations: dict[int, str], kinds: Sequence[StepKind], recipes: Sequence[str]
) -> None:
    """The steps of a batch's jobs with these recipes, made inside the database; the first of each is queued.

    Args:
        locations: the key of each job's ingest, by job id.
        recipes: names.
    """
    found = many_rows(session, list(locations.items()))
    is_ours = JobRow.recipe_name.in_(recipes)
    for position, kind in enumerate(kinds):
        is_first = position == 0
        values: dict[Any, Any] = {
            StepRow.job_id: JobRow.id,
            StepRow.kind: literal(kind.value),
            StepRow.position: literal(position),
            StepRow.rung: literal(0),
            StepRow.state: literal(StepState.QUEUED.value if is_first else StepState.BLOCKED.value),
            StepRow.team: JobRow.team,
            StepRow.pool: literal(None, Text) if kind in PUBLISHING_STEPS else JobRow.pool,
            StepRow.rank: literal(rank(batch.priority, position)),
            StepRow.memory_bytes: literal(INGEST_BYTES if is_first else 0, BigInteger),
            StepRow.scratch_bytes: literal(0, BigInteger),
            StepRow.run_at: literal(batch.created_at, Double),
            StepRow.fence: literal(0),
            StepRow.attempts: literal(0),
        }
        if is_first:
            values[StepRow.key] = found.text(1)
            rows = select(*values.values()).where(JobRow.id == found.number(0), is_ours).order_by(found.order)
        else:
            rows = select(*values.values()).where(JobRow.batch_id == batch.id, is_ours).order_by(JobRow.id)
        session.execute(insert(StepRow).from_select(list(values), rows, include_defaults=False))


def _store_calibration(session: Session, calibration: list[CalibrationEntry]) -> str:
    entries = [entry.model_dump(mode="json", exclude_none=True) for entry in calibration]
    digest = digest_of(entries)
    row = {"digest": digest, "entries": entries}
    session.execute(upsert(session, CalibrationRow).values(row).on_conflict_do_nothing(index_elements=["digest"]))
    return digest


def store_prompts(session: Session, prompts: list[DomainPrompt]) -> str:
    """Keep these prompts, once however often they are given; their digest."""
    values = [prompt.model_dump(mode="json", exclude_none=True) for prompt in prompts]
    digest = digest_of(values)
    row = {"digest": digest, "prompts": values}
    session.execute(upsert(session, PromptSetRow).values(row).on_conflict_do_nothing(index_elements=["digest"]))
    return digest
