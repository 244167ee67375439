"""What each step is asked to do: its inputs, its spec and what of them decides its key. Pure."""

from dataclasses import asdict, dataclass
from typing import Any

from olivepress.jobs import StepKind, digest_of, step_key
from olivepress.recipes import Recipe

CERTIFIED_NAME_PREFIX = "candidate-"


@dataclass(frozen=True)
class JobFacts:
    """What a job was asked to do, as far as its steps need it."""

    batch_id: int
    checkpoint_path: str
    base_path: str | None
    recipe: Recipe
    prompts: list[Any]
    prompts_digest: str | None
    chat_template: str | None = None
    """The file whose template is meant, where the checkpoint has two that differ."""


@dataclass(frozen=True)
class StepResult:
    """What a succeeded step left: JSON values, and the digest of its artifact where it has one."""

    result: dict[str, Any]
    artifact_digest: str | None = None


Done = dict[StepKind, StepResult]


def ingest_location(batch_id: int, checkpoint_path: str, base_path: str | None, chat_template: str | None) -> str:
    """Key under which ingest steps of one batch wait for each other: the same folders are read once.

    It is not remembered, for the files behind a path may change; see `ingest_key`.
    """
    return digest_of(["ingest-location", batch_id, checkpoint_path, base_path, chat_template])


def chosen_template(job: JobFacts) -> dict[str, Any]:
    """What ingest is told of the chat template; nothing where nobody chose, so that keys stay as they are."""
    return {"chat_template": job.chat_template} if job.chat_template else {}


def ingest_key(file_identity: str, told: dict[str, Any], fingerprint: str) -> str:
    """Key of what ingest found in files of this identity (`checkpoint_files.file_identity`).

    What it was told beside the path is part of it: the limits (allowed roots, whether pickles may be opened), for what
    an administrator has closed must not be remembered as open, and the choice of a chat template.
    """
    return step_key(StepKind.INGEST, {"identity": file_identity}, told, fingerprint)


def key_of(kind: StepKind, job: JobFacts, done: Done, fingerprint: str) -> str | None:
    """The key of a step whose predecessors are done; None for publish, which is unique per job."""
    if kind is StepKind.INGEST:
        return ingest_location(job.batch_id, job.checkpoint_path, job.base_path, job.chat_template)
    if kind is StepKind.CONVERT:
        inputs = {"checkpoint": done[StepKind.INGEST].result["checkpoint_digest"]}
        return step_key(kind, inputs, job.recipe.build_options(), fingerprint)
    if kind in (StepKind.PACKAGE, StepKind.VALIDATE):
        spec = spec_of(kind, job, done)
        return step_key(kind, artifacts_of(kind, done), spec, fingerprint)
    return None


def spec_of(kind: StepKind, job: JobFacts, done: Done) -> dict[str, Any]:
    """The JSON values that the step's `run` is given. The worker adds what only it knows: roots, an adapter's base."""
    ingested = done[StepKind.INGEST].result if StepKind.INGEST in done else {}
    if kind is StepKind.INGEST:
        return {"path": job.checkpoint_path, "base": job.base_path, **chosen_template(job)}
    if kind is StepKind.CONVERT:
        return {
            "path": job.checkpoint_path,
            "base": job.base_path,
            "ingest": ingested,
            "build": job.recipe.build_options(),
            "recipe_notes": list(job.recipe.notes),
        }
    if kind is StepKind.PACKAGE:
        return {
            "foundry": asdict(job.recipe.foundry),
            "context_length": _capped(ingested["context_length"], job.recipe.context_length),
            "family": ingested["family"],
            **{key: ingested[key] for key in ("chat_template",) if key in ingested},
        }
    if kind is StepKind.VALIDATE:
        package = done[StepKind.PACKAGE].artifact_digest or ""
        return {
            "prompts": job.prompts,
            "gates": asdict(job.recipe.gates),
            # Not the model's name: jobs of two names that give one artifact share one validation.
            "name": CERTIFIED_NAME_PREFIX + package[:12],
            "source_size_bytes": ingested["size_bytes"],
        }
    return {}


def _capped(context_length: int, most: int | None) -> int:
    """The tokens that the model takes: as many as the checkpoint does, unless the recipe says fewer."""
    return context_length if most is None else min(context_length, most)


def artifacts_of(kind: StepKind, done: Done) -> dict[str, str]:
    """Digests of the artifacts that are materialised for the step, by the name its code knows them by."""
    source = {StepKind.PACKAGE: StepKind.CONVERT, StepKind.VALIDATE: StepKind.PACKAGE}.get(kind)
    digest = done[source].artifact_digest if source else None
    return {"artifact": digest} if digest else {}
