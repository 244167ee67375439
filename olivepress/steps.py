"""Which steps a job has, what each is asked to do, and what of that decides its key. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from olivepress.jobs import PUBLISHING_STEPS, JobKind, StepKind, digest_of, step_key
from olivepress.recipes.recipe import Recipe

CERTIFIED_NAME_PREFIX = "candidate-"
# What the rungs of a ladder have in common.
ONCE_A_JOB = frozenset({StepKind.INGEST, StepKind.REFERENCE, StepKind.PUBLISH})


@dataclass(frozen=True)
class SourcePlace:
    """Where a checkpoint lies, and an adapter's base, unless the adapter itself names it."""

    path: str
    base_path: str | None = None


@dataclass(frozen=True)
class JobFacts:
    """What a job was asked to do, as far as its steps need it; with a ladder, on the rung that it is on."""

    batch_id: int
    checkpoint_path: str
    base_path: str | None
    recipe: Recipe
    prompts: list[Any]
    prompts_digest: str | None
    chat_template: str | None = None
    """The file whose template is meant, where the checkpoint has two that differ."""
    kind: JobKind = JobKind.CONVERT
    calibration: list[Any] | None = None
    calibration_digest: str | None = None
    soak: dict[str, Any] | None = None
    """How long the validation repeats sessions: {"minutes": m} or {"sessions": n}; None: briefly."""
    family: str | None = None
    """Of an import: the family that it is said to be of, where its own files say another."""
    made_from: SourcePlace | None = None
    """Of an import: the checkpoint that it is said to be made from."""

    @property
    def source(self) -> SourcePlace | None:
        """The checkpoint that the steps read: an import's is beside what it imports, if it is there at all."""
        if self.kind is JobKind.IMPORT:
            return self.made_from
        return SourcePlace(self.checkpoint_path, self.base_path)


@dataclass(frozen=True)
class StepResult:
    """What a succeeded step left: JSON values, and the digest of its artifact where it has one."""

    result: dict[str, Any]
    artifact_digest: str | None = None


Done = Mapping[StepKind, StepResult]
"""Succeeded steps: those of the rung that the job is on, and those that all rungs share."""


def plan(kind: JobKind, recipe: Recipe, *, is_validated: bool = True, has_source: bool = False) -> tuple[StepKind, ...]:
    """The steps that a job is submitted with, in the order in which they run.

    Args:
        recipe: of the first rung, where the job has a ladder.
        is_validated: an import may go without.
        has_source: whether an import comes with the checkpoint that it was made from.
    """
    if kind.measures_again:
        return (StepKind.INGEST, StepKind.PACKAGE, StepKind.REFERENCE, StepKind.VALIDATE)
    if kind is JobKind.IMPORT:
        compared = (StepKind.REFERENCE,) if has_source else ()
        measured = (*compared, StepKind.VALIDATE) if is_validated else ()
        return (StepKind.INGEST, StepKind.PACKAGE, *measured, StepKind.PUBLISH)
    # The source runs in torch only for what could be built; what it says then serves every rung.
    return (StepKind.INGEST, *_built(recipe), StepKind.REFERENCE, StepKind.VALIDATE, StepKind.PUBLISH)


def rung_plan(recipe: Recipe) -> tuple[StepKind, ...]:
    """The steps that a further rung of a ladder adds."""
    return (*_built(recipe), StepKind.VALIDATE)


def _built(recipe: Recipe) -> tuple[StepKind, ...]:
    if recipe.quantizes == "checkpoint":
        return (StepKind.QUANTIZE, StepKind.CONVERT, StepKind.PACKAGE)
    if recipe.quantizes == "onnx":
        return (StepKind.CONVERT, StepKind.QUANTIZE, StepKind.PACKAGE)
    return (StepKind.CONVERT, StepKind.PACKAGE)


def ingest_location(
    batch_id: int, checkpoint_path: str, base_path: str | None, chat_template: str | None, kind: JobKind
) -> str:
    """Key under which ingest steps of one batch wait for each other: the same folders are read once.

    It is not remembered, for the files behind a path may change; see `ingest_key`.
    """
    return digest_of(["ingest-location", batch_id, checkpoint_path, base_path, chat_template, kind.value])


def told_to_ingest(job: JobFacts) -> dict[str, Any]:
    """What ingest is told beside the paths; nothing where all is as usual, so that keys stay as they are."""
    chosen = {"chat_template": job.chat_template} if job.chat_template else {}
    if job.kind is not JobKind.IMPORT:
        return chosen
    source = {"source": asdict(job.made_from)} if job.made_from else {}
    return chosen | {"is_model": True} | ({"family": job.family} if job.family else {}) | source


def ingest_key(file_identity: str, told: dict[str, Any], fingerprint: str) -> str:
    """Key of what ingest found in files of this identity (`checkpoint_files.file_identity`).

    What it was told beside the path is part of it: the limits (allowed roots, whether pickles may be opened), for what
    an administrator has closed must not be remembered as open, and the choice of a chat template.
    """
    return step_key(StepKind.INGEST, {"identity": file_identity}, told, fingerprint)


def key_of(kind: StepKind, job: JobFacts, done: Done, fingerprint: str) -> str | None:
    """The key of a step whose predecessors are done; None for publish and seal, which are unique per job."""
    if kind in PUBLISHING_STEPS:
        return None
    if kind is StepKind.INGEST:
        return ingest_location(job.batch_id, job.checkpoint_path, job.base_path, job.chat_template, job.kind)
    inputs: dict[str, Any] = dict(artifacts_of(kind, job, done))
    if kind in READS_CHECKPOINT:
        inputs["source"] = ingested_source(done)["checkpoint_digest"]
    if kind in (StepKind.CONVERT, StepKind.QUANTIZE) and _is_calibrated_in(kind, job.recipe):
        inputs["calibration"] = job.calibration_digest
    return step_key(kind, inputs, _deciding(kind, job, done), fingerprint)


READS_CHECKPOINT = frozenset({StepKind.CONVERT, StepKind.QUANTIZE, StepKind.REFERENCE})
"""The steps that read again what ingest has read."""


def _is_calibrated_in(kind: StepKind, recipe: Recipe) -> bool:
    """Whether the team's calibration text goes into this step: into the quantizing one, if there is one."""
    if not recipe.needs_calibration:
        return False
    return kind is (StepKind.QUANTIZE if recipe.quantizes == "checkpoint" else StepKind.CONVERT)


def _deciding(kind: StepKind, job: JobFacts, done: Done) -> dict[str, Any]:
    """The part of a step's spec that decides its result; no path is in it."""
    if kind is StepKind.CONVERT:
        return job.recipe.build_options()
    if kind is StepKind.QUANTIZE:
        return {"quantize": job.recipe.quantize_options()}
    if kind is StepKind.REFERENCE:
        return _asked_of_source(job, done)
    return spec_of(kind, job, done)


def spec_of(kind: StepKind, job: JobFacts, done: Done) -> dict[str, Any]:
    """The JSON values that the step's `run` is given. The worker adds what only it knows: roots, an adapter's base."""
    specs: dict[StepKind, Callable[[], dict[str, Any]]] = {
        StepKind.INGEST: lambda: {"path": job.checkpoint_path, "base": job.base_path, **told_to_ingest(job)},
        StepKind.CONVERT: lambda: _source(job, done) | _building(StepKind.CONVERT, job),
        StepKind.QUANTIZE: lambda: (
            _source(job, done)
            | _building(StepKind.QUANTIZE, job)
            | {"quantize": job.recipe.quantize_options(), "on": job.recipe.quantizes}
        ),
        StepKind.PACKAGE: lambda: _packaging(job, done),
        StepKind.REFERENCE: lambda: _source(job, done) | _asked_of_source(job, done),
        StepKind.VALIDATE: lambda: _measuring(job, done),
    }
    return specs[kind]() if kind in specs else {}


def ingested_source(done: Done) -> dict[str, Any]:
    """What ingest found in the checkpoint; in what was imported, where that came alone."""
    ingested = done[StepKind.INGEST].result
    return ingested.get("source") or ingested


def _source(job: JobFacts, done: Done) -> dict[str, Any]:
    assert job.source is not None, "only a job with a source has a step that reads it"
    return {"path": job.source.path, "base": job.source.base_path, "ingest": ingested_source(done)}


def _building(kind: StepKind, job: JobFacts) -> dict[str, Any]:
    return {
        "build": job.recipe.build_options(),
        "recipe_notes": list(job.recipe.notes),
        "calibration": job.calibration if _is_calibrated_in(kind, job.recipe) else None,
    }


def _asked_of_source(job: JobFacts, done: Done) -> dict[str, Any]:
    return {"prompts": job.prompts, "repetition_penalty": _foundry(job, done)["repetition_penalty"]}


def _foundry(job: JobFacts, done: Done) -> dict[str, Any]:
    """The settings of generation: a model that was made elsewhere keeps its own."""
    return done[StepKind.INGEST].result.get("foundry") or asdict(job.recipe.foundry)


def _packaging(job: JobFacts, done: Done) -> dict[str, Any]:
    ingested = done[StepKind.INGEST].result
    return {
        "foundry": _foundry(job, done),
        "context_length": _capped(ingested["context_length"], job.recipe.context_length),
        "family": ingested["family"],
        **{key: ingested[key] for key in ("chat_template",) if key in ingested},
    }


def _measuring(job: JobFacts, done: Done) -> dict[str, Any]:
    package = done[StepKind.PACKAGE].artifact_digest or ""
    return {
        "prompts": job.prompts,
        "gates": asdict(job.recipe.gates),
        # Not the model's name: jobs of two names that give one artifact share one validation.
        "name": CERTIFIED_NAME_PREFIX + package[:12],
        "source_size_bytes": ingested_source(done)["size_bytes"],
        **({"soak": job.soak} if job.soak else {}),
        # Passes may move weights from one matrix to the next and leave what the model says as it was.
        **({"has_passes": True} if job.recipe.olive_passes else {}),
    }


def _capped(context_length: int, most: int | None) -> int:
    """The tokens that the model takes: as many as the checkpoint does, unless the recipe says fewer."""
    return context_length if most is None else min(context_length, most)


def artifacts_of(kind: StepKind, job: JobFacts, done: Done) -> dict[str, str]:
    """Digests of the artifacts that are materialised for the step, by the name its code knows them by."""
    sources = {name: done[source].artifact_digest for name, source in _sources(kind, job) if source in done}
    return {name: digest for name, digest in sources.items() if digest}


def _sources(kind: StepKind, job: JobFacts) -> tuple[tuple[str, StepKind], ...]:
    is_on_checkpoint = job.recipe.quantizes == "checkpoint"
    if kind is StepKind.CONVERT and is_on_checkpoint:
        return (("checkpoint", StepKind.QUANTIZE),)
    if kind is StepKind.QUANTIZE and not is_on_checkpoint:
        return (("artifact", StepKind.CONVERT),)
    if kind is StepKind.PACKAGE:
        return (("artifact", converted_by(job)),)
    if kind is StepKind.VALIDATE:
        return (("artifact", StepKind.PACKAGE), ("reference", StepKind.REFERENCE))
    return ()


def converted_by(job: JobFacts) -> StepKind:
    """The step whose artifact is the ONNX model that becomes a package."""
    if job.kind is JobKind.IMPORT:
        return StepKind.INGEST
    return StepKind.QUANTIZE if job.recipe.quantizes == "onnx" else StepKind.CONVERT
