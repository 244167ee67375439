"""Use case: submit a batch. One transaction: batch, jobs and their steps; nothing is sent before it is committed."""

import glob
from dataclasses import dataclass
from pathlib import Path

from olivepress.database.batches import Rung, WantedJob, insert_batch, known_batch
from olivepress.database.quotas import check_quota, note_predictions
from olivepress.database.recipes import own_recipes
from olivepress.database.sessions import Database
from olivepress.errors import BadManifest, QuotaExceeded
from olivepress.jobs import BatchId, JobId
from olivepress.manifest import HUB_PREFIX, MAX_CHECKPOINTS, CheckpointEntry, Manifest, inline_recipe
from olivepress.predicted_sizes import predicted_sizes
from olivepress.quotas import Wanted
from olivepress.recipes.calibration import check_calibration
from olivepress.recipes.recipe import BUILT_IN, Recipe, parse_reference, recipe_named
from olivepress.registry import check_alias, model_name, model_suffixes, name_from_directory


@dataclass(frozen=True)
class Submitted:
    """A batch as it was accepted; `is_new` is False where the idempotency key named one that was there."""

    batch_id: BatchId
    job_ids: list[JobId]
    is_new: bool = True


def submit(database: Database, manifest: Manifest, roots: list[Path], idempotency_key: str | None = None) -> Submitted:
    """Accept a batch: every checkpoint with every recipe.

    Args:
        roots: the only directories in which globs are expanded.
        idempotency_key: the same key of the same team gives the batch that it gave first.

    Raises:
        BadManifest: a name cannot be used, two jobs would publish under one name, a recipe cannot be, or a glob
            matches nothing.
        UnknownRecipe: a recipe that does not exist.
        QuotaExceeded: the team has not so much room left.
    """
    if idempotency_key and (known := _known(database, manifest.team, idempotency_key)):
        # Before anything else is looked at: a recipe that it names may have been removed since.
        return known
    check_alias(manifest.alias)
    recipes = resolved_recipes(database, manifest)
    ladder = [Rung(recipe, recipe.precision.value) for recipe in recipes] if manifest.ladder else []
    entries = [expanded for entry in manifest.checkpoints for expanded in _expand(entry, roots)]
    if len(entries) > MAX_CHECKPOINTS:
        raise BadManifest(f"the batch has {len(entries)} checkpoints, the most is {MAX_CHECKPOINTS}; split it")
    wanted = _named_jobs(entries, recipes[:1] if ladder else recipes)
    for job in wanted:
        _check_job(job, manifest, ladder)
    sizes = predicted_sizes(database, manifest.team, wanted, roots)
    try:
        with database.write() as session:
            check_quota(session, manifest.team, Wanted(len(wanted), sum(sizes)))
            if new := insert_batch(session, manifest, wanted, idempotency_key, ladder):
                note_predictions(session, new[1], sizes)
                return Submitted(*new)
    except QuotaExceeded:
        # Sent twice at once: the first of the two may have taken what was left.
        if idempotency_key and (known := _known(database, manifest.team, idempotency_key)):
            return known
        raise
    first = _known(database, manifest.team, idempotency_key or "")
    assert first is not None, "only the idempotency key can be taken"
    return first


def _known(database: Database, team: str, idempotency_key: str) -> Submitted | None:
    with database.read() as session:
        known = known_batch(session, team, idempotency_key)
    return Submitted(*known, is_new=False) if known else None


def resolved_recipes(database: Database, manifest: Manifest) -> list[Recipe]:
    """The recipes that a manifest names, those that the team keeps among them, and those that stand in it.

    Raises:
        UnknownRecipe: a recipe that does not exist.
        BadRecipe: one that stands in the manifest cannot be.
        BadManifest: two have one name.
    """
    own: dict[str, list[Recipe]] = {}
    entries = manifest.ladder or manifest.recipes
    named = [entry for entry in entries if isinstance(entry, str)]
    if any(parse_reference(name).name not in BUILT_IN for name in named):
        with database.read() as session:
            own = own_recipes(session, manifest.team)
    found: dict[str, Recipe] = {}
    for entry in entries:
        recipe = recipe_named(entry, own) if isinstance(entry, str) else inline_recipe(entry)
        if recipe.name in found:
            raise BadManifest(f"the batch names the recipe '{recipe.name}' twice; leave one out, or submit two batches")
        found[recipe.name] = recipe
    return list(found.values())


def _check_job(job: WantedJob, manifest: Manifest, ladder: list[Rung]) -> None:
    """What a job's names and recipes can be held against before anything runs.

    Raises:
        BadManifest: the model of a rung would have no legal name, or a recipe lacks its calibration text.
    """
    for rung in ladder:
        model_name(job.checkpoint_name, rung.suffix)
    has_calibration = bool(job.entry.calibration or manifest.calibration)
    for recipe in [rung.recipe for rung in ladder] or [job.recipe]:
        check_calibration(recipe, has_calibration=has_calibration)


def _expand(entry: CheckpointEntry, roots: list[Path]) -> list[CheckpointEntry]:
    """The directories that a glob names. What lies outside the roots is left to ingest, which refuses it."""
    if entry.path.startswith(HUB_PREFIX) or not glob.has_magic(entry.path) or Path(entry.path).exists():
        return [entry]
    fixed = Path(entry.path[: min(entry.path.find(char) for char in "*?[" if char in entry.path)])
    if not any(fixed.resolve().is_relative_to(root.resolve()) for root in roots):
        return [entry]
    found = sorted(path for path in glob.glob(entry.path, recursive=True) if Path(path).is_dir())  # noqa: PTH207
    if not found:
        raise BadManifest(f"no directory matches '{entry.path}'; check the pattern")
    if entry.name and len(found) > 1:
        raise BadManifest(f"'{entry.path}' matches {len(found)} directories, which cannot all be named '{entry.name}'")
    return [entry.model_copy(update={"path": path}) for path in found]


def _named_jobs(entries: list[CheckpointEntry], recipes: list[Recipe]) -> list[WantedJob]:
    suffixes = model_suffixes(recipes)
    wanted: list[WantedJob] = []
    taken: dict[tuple[str, str], str] = {}
    for entry in entries:
        name = entry.name or name_from_directory(Path(entry.path.rstrip("/\\")).name)
        for recipe in recipes:
            other = taken.get((name, recipe.name))
            taken[name, recipe.name] = entry.path
            if other is not None:
                raise BadManifest(
                    f"'{entry.path}' and '{other}' would both become '{name}' by recipe '{recipe.name}'; "
                    "give one of them another 'name', or leave one out"
                )
            wanted.append(WantedJob(entry, recipe, name, model_name(name, suffixes[recipe.name])))
    return wanted
