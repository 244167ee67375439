"""Where a version comes from, as one JSON document: checkpoint, steps, artifacts, version, aliases. Pure.

Each thing has an id, its kind and its digest: `checkpoint:1a2b…`, `artifact:3c4d…`. A step lists ids of what it used
and made; what one makes and another uses is the drawing. `schema_version` grows when a key changes its meaning or goes;
new keys may come without that, so readers ignore keys that they do not know.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from olivepress.jobs import StepKind, StepState
from olivepress.registry import VerdictKind

Json = dict[str, Any]
SCHEMA_VERSION = 1
SCHEMA_ID = "urn:olivepress:schema:lineage:1"
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
SHORT = 12


class _Part(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Thing(_Part):
    """Something that a step used or made."""

    id: str = Field(examples=["artifact:3c4d"])
    kind: str = Field(pattern="^(checkpoint|model|base|prompts|calibration|recipe|artifact|report|version)$")
    name: str
    """In a few words, for people."""
    digest: str | None
    """SHA-256 of its content."""
    detail: str | None = None
    """What else tells it from others, for people."""


class Attempt(_Part):
    """One run of a step."""

    number: int
    worker_id: str
    outcome: str | None
    started_at: float
    finished_at: float | None
    cpu_s: float | None
    peak_rss_bytes: int | None


class Step(_Part):
    """A step of the job that made the version."""

    kind: StepKind
    state: StepState
    key: str | None
    """SHA-256 of all that decides its result; null where the result does not depend on content alone."""
    fingerprint: str | None
    """Of the toolchain that is part of the key."""
    used: list[str]
    """Ids of things."""
    made: list[str]
    """Ids of things."""
    is_reused: bool
    """Its result was there already: the attempts are those of the step that it comes from."""
    reused_job: int | None
    """The job of that step, if it is of the same team."""
    worker_id: str | None
    """Who ran it, at last."""
    host: str | None
    toolchain: dict[str, str]
    """Versions of the libraries of that worker; empty where it is not known any more."""
    started_at: float | None
    finished_at: float | None
    seconds: float | None
    attempts: list[Attempt]


class VersionFacts(_Part):
    """The version itself, as it stands now."""

    model: str
    team: str
    number: int
    version: str
    aliases: list[str]
    recipe: str
    precision: str
    family: str
    size_bytes: int
    verdict: VerdictKind
    flags: dict[str, dict[str, Any]]
    deprecated: dict[str, Any] | None
    deleted: dict[str, Any] | None
    created_at: float
    package_digest: str
    artifact_digest: str
    report_digest: str | None
    toolchain_fingerprint: str | None
    job_id: int | None
    """Null where it was not made here: then there are no steps."""
    validations: list[dict[str, Any]] = []
    """What was measured of it again, oldest first: job, kind, verdict, runtime, times."""


class Lineage(_Part):
    """Where a version comes from."""

    model_config = ConfigDict(title="olivepress lineage")

    schema_version: int = SCHEMA_VERSION
    version: VersionFacts
    things: list[Thing]
    steps: list[Step]


def schema() -> Json:
    """The JSON schema of a lineage."""
    return {"$schema": SCHEMA_DIALECT, "$id": SCHEMA_ID, **Lineage.model_json_schema()}


def thing_id(kind: str, digest: str) -> str:
    """The id of a thing."""
    return f"{kind}:{digest}"


def thing(kind: str, digest: str, name: str, detail: str | None = None) -> Json:
    """A thing that is told from others by its digest."""
    return {"id": thing_id(kind, digest), "kind": kind, "name": name, "digest": digest, "detail": detail}


def short(digest: str | None) -> str:
    """The beginning of a digest, enough for people to tell it from others."""
    return digest[:SHORT] if digest else "–"
