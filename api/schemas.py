"""What the API answers, as its documentation shows it. A manifest, what it takes, is in olivepress.manifest."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from olivepress.jobs import AttemptOutcome, JobKind, JobState, StepKind, StepState


class Answer(BaseModel):
    """An answer with keys that this file does not name is a mistake in the view, and shows as one."""

    model_config = ConfigDict(extra="forbid")


class Problem(Answer):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:olivepress:error:NotFound"])
    title: str = Field(examples=["Nothing has this name or number."])
    status: int = Field(examples=[404])
    detail: str = Field(
        description="What, which, what now.",
        examples=["there is no batch 7; `olivepress jobs` lists the jobs and batches that exist"],
    )
    error_class: str = Field(description="A class of olivepress.errors, or InternalError.", examples=["NotFound"])


class SubmittedBatch(Answer):
    """A batch that was accepted."""

    id: int = Field(examples=[7])
    jobs: list[int] = Field(description="Ids in the order checkpoints x recipes.", examples=[[21, 22]])
    state: JobState


class Step(Answer):
    """One unit of a job."""

    kind: StepKind
    rung: int = Field(description="The rung of the job's ladder that it belongs to, from 0.")
    state: StepState
    phase: str | None = Field(description="What a running step does just now.", examples=["building"])
    share: float | None = Field(description="How much of a running step is done, 0 to 1.")
    attempt: int = Field(description="How many attempts were begun.")
    started_at: float | None = Field(description="Seconds since 1970.")
    finished_at: float | None
    seconds: float | None = Field(description="How long it has run.")
    reused: bool = Field(description="Its result was there already, or another job made it at the same time.")
    reused_job: int | None = Field(description="The job whose result it is, if that is of the same team.")
    waits_for: str | None = Field(description="Why no living worker can take it, and what to do.")
    predicted_memory_bytes: int | None
    predicted_s: float | None


class Figures(Answer):
    """What was measured of a job's artifact; null where it was not (yet)."""

    source_size_bytes: int | None
    size_bytes: int | None
    peak_rss_bytes: int | None
    tokens_per_s: float | None
    first_token_ms: float | None
    prompts_total: int | None
    prompts_with_expectation: int | None
    prompts_passed: int | None
    certificate: str | None = Field(examples=["passed"])


class Job(Answer):
    """One checkpoint and one recipe, or a ladder of recipes, of which it is on one at a time."""

    id: int
    batch_id: int
    kind: JobKind
    team: str
    name: str = Field(description="The checkpoint's name.", examples=["support-en"])
    path: str = Field(examples=["/models/support-en"])
    base: str | None
    recipe: str = Field(description="With a ladder, the rung's that it is on.", examples=["cpu-int4"])
    rung: int = Field(description="The place in the ladder of the recipe that it is on, from 0.")
    ladder: list[str] = Field(description="Recipes, the first whose gates pass counts; empty for one recipe.")
    model: str = Field(description="The name under which it is published.", examples=["support-en-int4"])
    version: str | None = Field(description="model:number, once published.", examples=["support-en-int4:1"])
    subject: str | None = Field(description="The version that it measures again.", examples=["support-en-int4:1"])
    alias: str = Field(examples=["latest"])
    priority: int
    state: JobState
    cancel_requested: bool
    error_class: str | None
    error_message: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    seconds: float | None
    steps: list[Step]
    figures: Figures | None


class BatchSummary(Answer):
    """Jobs that were submitted together."""

    id: int
    team: str
    name: str | None
    state: JobState = Field(description="Computed from the jobs.")
    waits_for: str | None = Field(description="Why none of its jobs can go on, and what to do.")
    created_at: float
    counts: dict[JobState, int] = Field(description="Number of jobs in each state.")


class Batch(BatchSummary):
    """A batch with its jobs."""

    jobs: list[Job]


class Attempt(Answer):
    """One run of a step by one worker."""

    number: int
    worker_id: str
    outcome: AttemptOutcome | None = Field(description="Null while it runs.")
    exit_code: int | None
    signal: int | None
    error_class: str | None
    error_message: str | None
    cpu_s: float | None
    peak_rss_bytes: int | None
    started_at: float
    finished_at: float | None


class StepDetail(Step):
    """A step with its attempts."""

    worker_id: str | None
    artifact_digest: str | None
    error_class: str | None
    error_message: str | None
    notes: list[str] = Field(description="What is unusual and no reason to refuse; of a reused result too.")
    attempts: list[Attempt]


class JobDetail(Job):
    """Everything that is known of a job."""

    steps: list[StepDetail]  # type: ignore[assignment]  # a field may be narrowed; lists are only read here
    recipe_settings: dict[str, Any]
    ingested: dict[str, Any] | None = Field(description="What ingest found in the checkpoint.")
    report: dict[str, Any] | None = Field(description="What validate measured, also where a gate failed.")
    seal: dict[str, Any] | None = Field(
        description="What the report of a later validation is signed for, and the signature; null: it is not signed."
    )


class LogTail(Answer):
    """The end of one attempt's log."""

    step: StepKind
    attempt: int
    outcome: AttemptOutcome | None
    worker_id: str
    started_at: float
    log: str = Field(description="The last lines, at most 200; of a running attempt as of a moment ago.")
    log_lines: int = Field(description="How many lines were written in all.")


class JobLog(Answer):
    """The ends of the logs of a job's attempts."""

    job_id: int
    logs: list[LogTail]


class Recipe(BaseModel):
    """A named, versioned target; olivepress.recipes.recipe says what each setting means."""

    # Settings are added with new recipes; the documentation names those that people choose by.
    model_config = ConfigDict(extra="allow")

    name: str
    version: int
    summary: str
    precision: str


class Worker(Answer):
    """A worker process and what it offers."""

    id: str
    alive: bool
    host: str
    pools: list[str]
    slots: int
    running_steps: int
    memory_bytes: int
    allowance_bytes: int = Field(description="What each of its steps may use.")
    disk_free_bytes: int
    fingerprint: str = Field(description="The toolchain; part of a step's key.")
    hardware: dict[str, Any]
    toolchain: dict[str, Any]
    architectures: list[str]
    signing_key: str | None = Field(description="The id of the key that it publishes with.")
    started_at: float
    seen_at: float
    stopped_at: float | None


class LearnedCost(Answer):
    """What attempts of one kind of step and family took, as a multiple of what sizes alone predict."""

    kind: StepKind
    family: str = Field(examples=["qwen2/int4/default"])
    memory_ratio: float
    seconds_ratio: float
    attempts: int


class HealthStatus(StrEnum):
    """The stack in one word."""

    OK = "ok"
    DEGRADED = "degraded"
    DOWN = "down"


class Health(Answer):
    """Is the stack alive?"""

    status: HealthStatus
    version: str
    database: bool
    scheduler_alive: bool = False
    workers_alive: int = 0


class CheckStatus(StrEnum):
    """How one part is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(Answer):
    """One part of the stack, and what to do about it."""

    name: str = Field(examples=["redis"])
    status: CheckStatus
    detail: str
    what_now: str | None


class RetentionAmount(Answer):
    """How many, and how many bytes together."""

    count: int
    size_bytes: int = Field(description="Of rows: the length of their logs.")


class RetentionKind(RetentionAmount):
    """What went, or would go, of one kind."""

    kind: str = Field(examples=["artifacts"])
    kept_for_s: float | None = Field(description="How long this kind is kept; null: for ever.", examples=[86400.0])


class Retention(Answer):
    """What a run removed, or would remove."""

    dry_run: bool
    kinds: list[RetentionKind] = Field(
        description="Artifacts and chunks go into the trash first; what is under trash frees space."
    )
    put_back: RetentionAmount = Field(description="Found in the trash and relied on again.")
    waiting: RetentionAmount = Field(description="In the trash until a later run removes it.")
    problem: str | None = Field(description="Why something stays that might go, and what to do.")


class FamilyUse(Answer):
    """What the artifacts of one family take."""

    family: str
    artifacts: int
    logical_bytes: int
    stored_bytes: int


class StoreCheck(Answer):
    """What the last check of the store found."""

    kind: str = Field(description="full, or fast: then no content was read.", examples=["full"])
    store: str
    finished_at: float
    sound: bool = Field(description="Whether everything that somebody needs was there and whole.")
    report: dict[str, Any] = Field(description="As `olivepress store check --json` prints it; long lists are cut.")


class StoreUse(Answer):
    """What the store holds: the bytes of all files, and those of the distinct chunks that they consist of."""

    last_check: StoreCheck | None = Field(description="The last full check; none yet: null.")
    name: str
    artifacts: int
    logical_bytes: int
    stored_bytes: int
    families: list[FamilyUse]


class SigningKey(Answer):
    """The public half of a key that published versions are signed with."""

    id: str = Field(description="The beginning of the SHA-256 of its bytes.", examples=["3f9a5c0e7b21d846"])
    public_key: str = Field(description="Its 32 bytes in base64.")
    created_at: float
    endorsed_by: str | None = Field(description="The key that it replaced and that signed it.")
    endorsement: str | None = Field(description="That signature in base64.")


class QuotaUse(Answer):
    """What a team has."""

    versions: int
    bytes: int = Field(description="Of the versions' files; what versions share in the store counts in each.")
    waiting_jobs: int = Field(description="Jobs that are not over.")
    waiting_bytes: int = Field(description="What those are predicted to publish, as far as that is known.")


class QuotaLimits(Answer):
    """What a team may have; null: as much as it likes."""

    max_bytes: int | None = Field(default=None, ge=0, le=2**62, examples=[50_000_000_000])
    max_versions: int | None = Field(default=None, ge=0, le=2**31 - 1, examples=[200])
    max_jobs: int | None = Field(default=None, ge=0, le=2**31 - 1, examples=[1000])


class QuotaChange(QuotaLimits):
    """Limits to change; those that are left out stay."""


class Quota(QuotaLimits):
    """What a team may have, and what it has."""

    team: str
    used: QuotaUse
