"""What the API answers where models and their versions are looked at."""

from typing import Any

from pydantic import Field

from api.schemas import Answer, Figures
from olivepress.jobs import JobKind, JobState
from olivepress.registry import VerdictKind, VersionFlag


class Flag(Answer):
    """Something that is known against a version."""

    reason: str
    flagged_at: float


class Deprecation(Answer):
    """That a version should not be used any more."""

    deprecated_at: float
    deprecated_by: str
    reason: str
    successor: str | None = Field(description="What to use instead.", examples=["support-en-int4:4"])


class Deletion(Answer):
    """That a version was deleted."""

    deleted_at: float
    deleted_by: str
    reason: str | None
    files_until: float = Field(description="Until then it can be undeleted.")


class Validation(Answer):
    """A job that measured a published version again, or is to."""

    job_id: int
    kind: JobKind
    state: JobState
    verdict: VerdictKind | None = Field(description="Null: it has none (yet).")
    runtime: str | None = Field(description="The version of the runtime that certified.", examples=["2.2.1"])
    signed_by: str | None = Field(description="The id of the key that signed its report.")
    problem: str | None
    created_at: float
    finished_at: float | None


class VersionSummary(Answer):
    """A version without its report."""

    number: int
    version: str = Field(examples=["support-en-int4:1"])
    aliases: list[str]
    recipe: str
    precision: str
    family: str
    size_bytes: int
    job_id: int | None = Field(description="Null: it was not made here.")
    created_at: float
    verdict: VerdictKind = Field(description="What the gates said when it was published.")
    flags: dict[VersionFlag, Flag] = Field(description="Why no alias should point to it.")
    deprecated: Deprecation | None
    deleted: Deletion | None
    validations: list[Validation] = Field(description="What was measured again, oldest first.")
    figures: Figures


class ModelSummary(Answer):
    """A registered name."""

    name: str
    team: str
    created_at: float
    versions: int
    newest: VersionSummary | None
    aliases: dict[str, int] = Field(description="Alias to version number.", examples=[{"latest": 3}])


class Model(Answer):
    """A registered name with its versions, newest first."""

    name: str
    team: str
    created_at: float
    versions: list[VersionSummary]
    aliases: dict[str, int]


class VersionFile(Answer):
    """A file of a version."""

    path: str = Field(examples=["genai_config.json"])
    size_bytes: int
    sha256: str


class Version(Answer):
    """A numbered, immutable artifact with its report and provenance."""

    model: str
    team: str
    number: int
    version: str
    aliases: list[str]
    recipe: str
    precision: str
    family: str
    size_bytes: int
    job_id: int | None
    created_at: float
    verdict: VerdictKind
    flags: dict[VersionFlag, Flag]
    deprecated: Deprecation | None
    deleted: Deletion | None
    validations: list[Validation]
    package_digest: str
    artifact_digest: str
    report: dict[str, Any]
    provenance: dict[str, Any]
    files: list[VersionFile]
