"""All tables. Times are seconds since 1970 by the database's clock; JSON columns hold plain JSON values.

batches 1─n jobs 1─n steps 1─n attempts          remembered: step key -> result
models 1─n versions, models 1─n aliases n─1 versions, models 1─n alias_moves
prompt_sets, calibrations, workers, leases, learned_costs, recipes, signing_keys, quotas, store_checks stand alone
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from olivepress.database.store_check_row import StoreCheckRow as StoreCheckRow
from olivepress.database.table import Json as Json
from olivepress.database.table import Table as Table

# People write these ids down and messages carry them: SQLite would give that of a deleted last row again.
NEVER_REUSED = {"sqlite_autoincrement": True}


def _index_where_set(column: str) -> Index:
    """An index of the rows of `steps` that have a value here."""
    is_set = text(f"{column} IS NOT NULL")
    return Index(f"ix_steps_{column}", column, sqlite_where=is_set, postgresql_where=is_set)


class BatchRow(Table):
    """Jobs that were submitted together. Its state is computed from theirs."""

    __tablename__ = "batches"
    __table_args__ = (UniqueConstraint("team", "idempotency_key"), NEVER_REUSED)

    id: Mapped[int] = mapped_column(primary_key=True)
    team: Mapped[str]
    name: Mapped[str | None]
    idempotency_key: Mapped[str | None]
    created_at: Mapped[float]


class PromptSetRow(Table):
    """Domain prompts, kept once however many jobs ask them."""

    __tablename__ = "prompt_sets"

    digest: Mapped[str] = mapped_column(primary_key=True)
    prompts: Mapped[list[Any]]


class CalibrationRow(Table):
    """A team's calibration text, kept once however many jobs quantize with it."""

    __tablename__ = "calibrations"

    digest: Mapped[str] = mapped_column(primary_key=True)
    entries: Mapped[list[Any]]


class JobRow(Table):
    """One checkpoint and one recipe, or a ladder of recipes, of which it is on one at a time."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(
            "ix_jobs_subject_version_id",
            "subject_version_id",
            sqlite_where=text("subject_version_id IS NOT NULL"),
            postgresql_where=text("subject_version_id IS NOT NULL"),
        ),
        NEVER_REUSED,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    batch_id: Mapped[int] = mapped_column(ForeignKey("batches.id"), index=True)
    kind: Mapped[str]
    subject_version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))
    """The version that it measures again."""
    team: Mapped[str]
    checkpoint_name: Mapped[str]
    checkpoint_path: Mapped[str]
    base_path: Mapped[str | None]
    recipe_name: Mapped[str]
    recipe: Mapped[Json]
    model_name: Mapped[str]
    alias: Mapped[str]
    pool: Mapped[str | None]
    """Only workers that offer this pool run its steps; None: any."""
    chat_template: Mapped[str | None]
    """The file whose template is meant, where the checkpoint has two that differ."""
    prompts_digest: Mapped[str | None] = mapped_column(ForeignKey("prompt_sets.digest"))
    calibration_digest: Mapped[str | None] = mapped_column(ForeignKey("calibrations.digest"))
    soak: Mapped[Json | None]
    particulars: Mapped[Json | None]
    """What only jobs of its kind have: of an import "family" and "unvalidated", the reason why it is not measured; of a
    recertification "runtime", the version that it certifies for."""
    ladder: Mapped[list[Any] | None]
    """Every rung as {"recipe": its recipe, "suffix": what the model's name then ends with}; None: one recipe."""
    rung: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    """The place in the ladder of the recipe that it is on; `recipe` and `model_name` are that rung's."""
    priority: Mapped[int]
    is_fresh: Mapped[bool]
    predicted_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """What it is going to publish, roughly; None: the team had no quota of bytes when it was submitted."""
    state: Mapped[str] = mapped_column(index=True)
    cancel_requested: Mapped[bool]
    error_class: Mapped[str | None]
    error_message: Mapped[str | None]
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))
    created_at: Mapped[float]
    finished_at: Mapped[float | None]


class StepRow(Table):
    """One unit of a job; olivepress/jobs.py says who moves its state."""

    __tablename__ = "steps"
    __table_args__ = (
        UniqueConstraint("job_id", "position"),
        Index("ix_steps_waiting", "state", "team", "rank", "id"),
        # Most steps of a large batch have none of these for a long time: partial indexes keep its insertion fast.
        *(_index_where_set(column) for column in ("signaled_at", "worker_id", "key")),
        # Of rows with one key only one runs.
        Index(
            "uq_steps_running_key",
            "key",
            unique=True,
            sqlite_where=text("state = 'running'"),
            postgresql_where=text("state = 'running'"),
        ),
        NEVER_REUSED,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    kind: Mapped[str]
    position: Mapped[int]
    rung: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    """The rung of its job's ladder that it belongs to; what all rungs share has 0."""
    state: Mapped[str]
    team: Mapped[str]
    pool: Mapped[str | None]
    rank: Mapped[int]
    """Order among the waiting steps of a team, the smallest first; `jobs.rank` computes it."""
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    """What it is predicted to need; a worker whose slots have less does not take it."""
    scratch_bytes: Mapped[int] = mapped_column(BigInteger)
    predicted_s: Mapped[float | None]
    unplaceable: Mapped[str | None]
    """Why no living worker can take it, in plain words."""
    unplaceable_since: Mapped[float | None]
    key: Mapped[str | None]
    fingerprint: Mapped[str | None]
    fence: Mapped[int] = mapped_column(Integer, default=0)
    lease_expires_at: Mapped[float | None]
    worker_id: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    run_at: Mapped[float]
    signaled_at: Mapped[float | None]
    signaled_to: Mapped[str | None]
    phase: Mapped[str | None]
    share: Mapped[float | None]
    result: Mapped[Json | None]
    artifact_digest: Mapped[str | None]
    reused_step_id: Mapped[int | None] = mapped_column(ForeignKey("steps.id"))
    error_class: Mapped[str | None]
    error_message: Mapped[str | None]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class AttemptRow(Table):
    """One run of a step by one worker."""

    __tablename__ = "attempts"
    __table_args__ = (UniqueConstraint("step_id", "fence"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    step_id: Mapped[int] = mapped_column(ForeignKey("steps.id"))
    number: Mapped[int]
    fence: Mapped[int]
    worker_id: Mapped[str]
    outcome: Mapped[str | None]
    exit_code: Mapped[int | None]
    signal: Mapped[int | None]
    error_class: Mapped[str | None]
    error_message: Mapped[str | None]
    cpu_s: Mapped[float | None]
    peak_rss_bytes: Mapped[int | None] = mapped_column(BigInteger)
    allowance_bytes: Mapped[int | None] = mapped_column(BigInteger)
    log_tail: Mapped[str | None]
    log_lines: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    """Lines written so far; `log_tail` holds the last of them."""
    started_at: Mapped[float]
    finished_at: Mapped[float | None]


class RememberedRow(Table):
    """What a step key gave: the same work is never done twice."""

    __tablename__ = "remembered"

    key: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    result: Mapped[Json]
    artifact_digest: Mapped[str | None]
    step_id: Mapped[int] = mapped_column(ForeignKey("steps.id"))
    created_at: Mapped[float]


class ModelRow(Table):
    """A registered name. `next_number` only grows: numbers of deleted versions are never used again."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("team", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    team: Mapped[str]
    name: Mapped[str]
    next_number: Mapped[int]
    created_at: Mapped[float]


class VersionRow(Table):
    """A numbered, immutable artifact of a model with its report and provenance; a deleted one's row stays for ever."""

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("model_id", "number"),
        # What was deleted may be published again, as another version.
        Index(
            "uq_versions_kept_package",
            "model_id",
            "package_digest",
            unique=True,
            sqlite_where=text("deleted_at IS NULL"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    number: Mapped[int]
    package_digest: Mapped[str]
    artifact_digest: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    recipe_name: Mapped[str]
    precision: Mapped[str]
    family: Mapped[str]
    job_id: Mapped[int | None]
    """None: it was not made here."""
    verdict: Mapped[str]
    report: Mapped[Json]
    provenance: Mapped[Json]
    created_at: Mapped[float]
    flags: Mapped[Json]
    """Why no alias should point to it: `registry.VersionFlag` -> {"reason", "flagged_at"}."""
    deprecated_at: Mapped[float | None]
    deprecated_by: Mapped[str | None]
    deprecated_reason: Mapped[str | None]
    successor: Mapped[str | None]
    """What to use instead, as NAME, NAME:3 or NAME@production."""
    deleted_at: Mapped[float | None]
    deleted_by: Mapped[str | None]
    deleted_reason: Mapped[str | None]
    files_until: Mapped[float | None]
    """Of a deleted one: until then it can be undeleted, and its files stay."""


class AliasRow(Table):
    """A movable pointer to a version of a model."""

    __tablename__ = "aliases"

    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    moved_at: Mapped[float]


class AliasMoveRow(Table):
    """One move of an alias. Rows are only added."""

    __tablename__ = "alias_moves"
    __table_args__ = (Index("ix_alias_moves_of_alias", "model_id", "alias", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    alias: Mapped[str]
    cause: Mapped[str]
    """`registry.MoveCause`."""
    from_version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))
    to_version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))
    """None: the alias is gone."""
    moved_at: Mapped[float]
    moved_by: Mapped[str]
    reason: Mapped[str | None]
    overridden: Mapped[list[Any]]
    """What spoke against the move and was overridden, in plain words."""


class WorkerRow(Table):
    """A worker process and what it offers."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    pid_started_at: Mapped[float]
    pid_space: Mapped[str]
    """The boot and the pid namespace in which the pid means this process."""
    pools: Mapped[list[Any]]
    slots: Mapped[int]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    """Offered to steps, in equal parts for each slot; 0: it only publishes."""
    disk_free_bytes: Mapped[int] = mapped_column(BigInteger)
    fingerprint: Mapped[str]
    timed_fingerprint: Mapped[str]
    hardware: Mapped[Json]
    toolchain: Mapped[Json]
    architectures: Mapped[list[Any]]
    signing_key: Mapped[str | None]
    """The id of the key that it publishes with; None: it has none, or cannot use it."""
    started_at: Mapped[float]
    seen_at: Mapped[float]
    stopped_at: Mapped[float | None]

    @property
    def allowance_bytes(self) -> int:
        """The memory that each of its steps may use."""
        return self.memory_bytes // self.slots


class LearnedCostRow(Table):
    """What steps of one kind and family took, as a ratio to what was predicted from sizes alone."""

    __tablename__ = "learned_costs"

    kind: Mapped[str] = mapped_column(primary_key=True)
    family: Mapped[str] = mapped_column(primary_key=True)
    memory_ratio: Mapped[float]
    seconds_ratio: Mapped[float]
    attempts: Mapped[int]
    updated_at: Mapped[float]


class RecipeRow(Table):
    """A version of a team's own recipe. It never changes: a job keeps the one that it was submitted with anyway."""

    __tablename__ = "recipes"
    __table_args__ = (UniqueConstraint("team", "name", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    team: Mapped[str]
    name: Mapped[str]
    version: Mapped[int]
    digest: Mapped[str]
    content: Mapped[Json]
    created_at: Mapped[float]
    removed_at: Mapped[float | None]
    """Removed ones are not offered any more, stay readable, and keep their numbers."""


class SigningKeyRow(Table):
    """The public half of a key that published versions were signed with. It stays known for ever."""

    __tablename__ = "signing_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    public_key: Mapped[str]
    """Its 32 bytes in base64."""
    created_at: Mapped[float]
    endorsed_by: Mapped[str | None]
    """The key before it, and that key's signature of this one in base64; None: the first."""
    endorsement: Mapped[str | None]


class QuotaRow(Table):
    """What a team may have; None: as much as it likes."""

    __tablename__ = "quotas"

    team: Mapped[str] = mapped_column(primary_key=True)
    max_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_versions: Mapped[int | None]
    max_jobs: Mapped[int | None]
    updated_at: Mapped[float]


class LeaseRow(Table):
    """A named lease on being the only one, such as the scheduler's leadership."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    expires_at: Mapped[float]
