"""report.json: what was measured of a model version, with what it is; the schema is published and versioned.

`schema_version` grows when a key changes its meaning or goes; new keys may come without that, so readers ignore keys
that they do not know.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]
SCHEMA_VERSION = 1
UNMEASURED_VERSION = 2
"""As a report of the validate step has it."""
SCHEMA_ID = "urn:olivepress:schema:report:1"
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
VERSION_KEYS = (
    "model",
    "version",
    "number",
    "team",
    "recipe",
    "precision",
    "family",
    "created_at",
    "package_digest",
    "artifact_digest",
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class TimedFigure(_Part):
    """A timed figure over repeated runs; all in the same unit."""

    median: float
    p95: float
    """What 95 of 100 runs reach or better."""
    spread: float | None = None
    """How far from the median that of another validation on the same hardware may lie."""


class Latency(_Part):
    """Speed at one length of prompt."""

    prompt_tokens: int
    runs: int
    first_token_ms: TimedFigure | None
    tokens_per_s: TimedFigure | None
    rss_bytes: int | None
    """Memory while the session is open."""
    problem: str | None
    """Why there is no figure."""


class Gate(_Part):
    """A limit, the figure held against it, and the verdict."""

    name: str
    limit: float | bool
    figure: float | bool | None
    verdict: str = Field(pattern="^(passed|failed|not_binding)$")
    note: str
    unit: str = ""


class PromptItem(_Part):
    """A domain prompt with what model and source answered."""

    name: str
    messages: list[dict[str, str]]
    answer: str
    expect: dict[str, Any] | None
    passed: bool | None
    seconds: float
    seconds_spread: float | None = None
    """How far from it that of another validation on the same hardware may lie."""
    problem: str | None
    source_answer: str | None = None
    same_as_source: bool | None = None


class Prompts(_Part):
    """All domain prompts."""

    total: int
    with_expectation: int | None
    passed: int | None
    items: list[PromptItem]


class Comparison(_Part):
    """Next-token distributions of model and source over so many positions."""

    positions: int
    perplexity: float
    source_perplexity: float
    perplexity_increase: float
    """Share: 0.05 is five percent."""
    top1_agreement: float
    """Share of positions where both name the same next token."""
    kl_divergence: float
    """Mean nats from the source to the model."""
    spread: dict[str, list[float]]
    """95 % bootstrap intervals."""


class Quality(_Part):
    """Quality against the source; only `problem` where it could not be measured."""

    held_out: Comparison | None = None
    answers: Comparison | None = None
    kl_over_rounding: float | None = None
    """The divergence as a multiple of what rounding alone does to the source."""
    problem: str | None


class Check(_Part):
    """A check that passes or fails as a whole."""

    status: str = Field(pattern="^(passed|failed|not_measured)$")
    problem: str | None
    notes: list[str]


class Consistency(Check):
    """How the model behaves over lengths of prompts."""

    lengths_answered: list[int] = []
    largest_jump: float | None = None
    untried: list[str] = []
    """Lengths that were not tried, the limit of the context among them, and why."""


class Soak(_Part):
    """Memory over repeated sessions."""

    sessions: int
    rss_bytes: list[int]
    rss_slope_bytes: float | None
    """Bytes a session."""
    rss_slope_interval: list[float] | None
    verdict: str


class Certificate(_Part):
    """Proof that the model chatted inside the real Foundry Local runtime."""

    status: str = Field(pattern="^(passed|failed)$")
    name: str
    runtime: dict[str, str]
    network: str
    exchanges: list[dict[str, Any]]
    problem: str | None


class Measurements(_Part):
    """What validate measured. Bytes are bytes, `_ms` milliseconds, shares 0 to 1."""

    schema_version: int
    hardware: dict[str, Any]
    load_average: list[float]
    size_bytes: int
    source_size_bytes: int | None = None
    size_ratio: float | None = None
    load_ms: float | None = None
    """The first load, when the files may not be in memory yet."""
    load: TimedFigure | None = None
    """Further loads."""
    first_token_ms: TimedFigure | None = None
    tokens_per_s: TimedFigure | None = None
    cpu_cores: float | None = None
    waited_share: float | None = None
    """Of the time of the timed answers, what the process waited for a processor that others had."""
    rss_after_load_bytes: int | None = None
    peak_rss_bytes: int | None = None
    """Of a session of `peak_rss_tokens`."""
    peak_rss_tokens: int | None = None
    highest_rss_bytes: int | None = None
    """Over all that was timed; longer prompts, where there was time for them, take more."""
    rss_spread_bytes: int | None = None
    """How far from both that of another validation may lie."""
    has_source: bool | None = None
    """Whether quality could be held against the source."""
    latency: list[Latency] = []
    consistency: Consistency | None = None
    prompts: Prompts
    soak: Soak | None = None
    quality: Quality | None = None
    tokenizer_parity: Check | None = None
    cross_check: Check | None = None
    edge_cases: Check | None = None
    certificate: Certificate
    gates: list[Gate]


class Unmeasured(_Part):
    """What stands in the place of measurements where a model was imported without being validated."""

    schema_version: int
    not_validated: str
    """The reason that was given."""
    problem: str
    size_bytes: int
    gates: None


class Rung(_Part):
    """A recipe of a ladder that was tried, with what came of it; the first tried is the first."""

    recipe: str
    precision: str | None = None
    verdict: str | None
    size_bytes: int | None = None
    kl_divergence: float | None = None
    """Mean nats from the source on the held-out text."""
    figures: dict[str, Any] = {}
    """What tables of versions show: size_bytes, tokens_per_s, first_token_ms, peak_rss_bytes, prompts_passed …"""
    failed_gates: list[str] = []


class ReportDocument(_Part):
    """A model version and what was measured of it."""

    model_config = ConfigDict(title="olivepress report")

    schema_version: int = SCHEMA_VERSION
    model: str
    version: str
    number: int | None
    """None: what a job measured that published nothing."""
    recipe: str
    precision: str
    family: str
    created_at: float | None
    """Seconds since 1970."""
    verdict: str = Field(pattern="^(passed|failed|not_measured)$")
    report: Measurements | Unmeasured
    rungs: list[Rung] = []
    provenance: dict[str, Any] = {}
    job_id: int | None = None
    """The job that measured it, where that is not the one that published the version."""
    seal: dict[str, Any] | None = None
    """What the report of a later validation is signed for, and the signature: `olivepress verify FILE.json`."""


def schema() -> Json:
    """The JSON schema of report.json."""
    return {"$schema": SCHEMA_DIALECT, "$id": SCHEMA_ID, **ReportDocument.model_json_schema()}


def document_of(version: Mapping[str, Any]) -> Json:
    """report.json of a version, as the API's answer for a version holds its parts."""
    report = dict(version["report"])
    return {
        "schema_version": SCHEMA_VERSION,
        **{key: version[key] for key in VERSION_KEYS if key in version},
        "verdict": verdict_of_report(report),
        "report": {key: value for key, value in report.items() if key != "rungs"},
        "rungs": list(report.get("rungs") or []),
        "provenance": dict(version.get("provenance") or {}),
    }


def unmeasured(reason: str, size_bytes: int) -> Json:
    """The report of a version that nobody measured, for this reason."""
    return {
        "schema_version": UNMEASURED_VERSION,
        "not_validated": reason,
        "problem": f"this version was imported and never validated: {reason}",
        "size_bytes": size_bytes,
        "gates": None,
    }


def document_of_job(job: Mapping[str, Any]) -> Json:
    """The same of what a job measured, as the API's answer for a job that has a report holds its parts."""
    version = job["version"] or job["subject"]
    settings, ingested = job["recipe_settings"], job["ingested"] or {}
    described = {
        "model": job["model"],
        "version": version or f"{job['model']} (job {job['id']})",
        "number": int(version.rpartition(":")[2]) if version else None,
        "team": job["team"],
        "recipe": job["recipe"],
        "precision": ingested.get("precision") or settings["precision"],
        "family": ingested.get("family", ""),
        "created_at": job["finished_at"],
        "report": job["report"],
    }
    sealed = {"seal": job["seal"]} if job.get("seal") else {}
    return document_of(described) | {"job_id": job["id"]} | sealed


def verdict_of_report(report: Mapping[str, Any]) -> str:
    """Failed as soon as one gate failed."""
    if report.get("gates") is None:
        return "not_measured"
    return "failed" if any(gate["verdict"] == "failed" for gate in report["gates"]) else "passed"


def at(value: Any, *path: str) -> Any:
    """The value under a path of keys; None where there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
