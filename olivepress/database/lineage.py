"""Where versions come from, read from what their jobs left; and which versions came from a checkpoint."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from olivepress.database import registry_views
from olivepress.database.tables import AttemptRow, JobRow, Json, ModelRow, StepRow, VersionRow, WorkerRow
from olivepress.database.unblocking import done_steps, job_facts
from olivepress.database.versions import find_version
from olivepress.jobs import StepKind
from olivepress.lineage import SCHEMA_VERSION, Lineage, thing, thing_id
from olivepress.registry import VersionReference
from olivepress.steps import ONCE_A_JOB, READS_CHECKPOINT, Done, JobFacts, artifacts_of, spec_of

FOLLOWS_RECIPE = frozenset({StepKind.CONVERT, StepKind.QUANTIZE, StepKind.PACKAGE, StepKind.VALIDATE})
ASKS_PROMPTS = frozenset({StepKind.REFERENCE, StepKind.VALIDATE})
ARTIFACT_NAMES = {
    StepKind.INGEST: "imported model",
    StepKind.CONVERT: "ONNX model",
    StepKind.QUANTIZE: "quantized model",
    StepKind.PACKAGE: "package",
    StepKind.REFERENCE: "the source's answers",
}
LEAST_PREFIX = 8


def lineage(session: Session, team: str, wanted: VersionReference) -> Json:
    """The lineage of a version (see olivepress.lineage), also of one that is deleted.

    Raises:
        NotFound: the team has no such model, version or alias.
    """
    model, row = find_version(session, team, wanted, also_deleted=True)
    summary = registry_views.version_summary(session, team, VersionReference(model.name, number=row.number))
    job = session.get(JobRow, row.job_id) if row.job_id is not None else None
    provenance = row.provenance
    facts = {
        "model": model.name,
        "team": model.team,
        **{key: value for key, value in summary.items() if key != "figures"},
        "package_digest": row.package_digest,
        "artifact_digest": row.artifact_digest,
        "report_digest": provenance.get("report_digest"),
        "toolchain_fingerprint": provenance.get("toolchain_fingerprint"),
    }
    things = _inputs(row, job) | {thing_id("artifact", row.artifact_digest): _published(row)}
    steps: list[Json] = []
    if job is not None:
        steps = _steps(session, job, row, things)
    document = {"schema_version": SCHEMA_VERSION, "version": facts, "things": list(things.values()), "steps": steps}
    return Lineage.model_validate(document).model_dump(mode="json")


def versions_from(session: Session, team: str, digest: str, limit: int, after_id: int = 0) -> list[Json]:
    """Versions of a team that came from a checkpoint or were trained on it as their base, in the order of their ids.

    Args:
        digest: of the checkpoint; its beginning is enough.
        after_id: only versions behind this one: the next page.
    """
    source = VersionRow.provenance[("checkpoint", "digest")].as_string()
    base = VersionRow.provenance[("checkpoint", "base_digest")].as_string()
    query = (
        select(VersionRow, ModelRow, source, base)
        .join(ModelRow, ModelRow.id == VersionRow.model_id)
        .where(ModelRow.team == team, VersionRow.id > after_id)
        .where(or_(source.startswith(digest, autoescape=True), base.startswith(digest, autoescape=True)))
        .order_by(VersionRow.id)
        .limit(limit)
    )
    return [
        {
            "id": version.id,
            "version": f"{model.name}:{version.number}",
            "model": model.name,
            "number": version.number,
            "came_as": "checkpoint" if of_source and of_source.startswith(digest) else "base",
            "checkpoint_digest": of_source,
            "base_digest": of_base,
            "recipe": version.recipe_name,
            "verdict": version.verdict,
            "created_at": version.created_at,
            "is_deleted": version.deleted_at is not None,
        }
        for version, model, of_source, of_base in session.execute(query)
    ]


def _inputs(row: VersionRow, job: JobRow | None) -> dict[str, Json]:
    """What people gave, by its id."""
    checkpoint = row.provenance.get("checkpoint") or {}
    kept = row.provenance.get("recipe") or {}
    found = []
    if digest := checkpoint.get("digest"):
        # An import is of an ONNX model that was made elsewhere, which says of itself that it is a model.
        kind = "model" if checkpoint.get("kind") == "model" else "checkpoint"
        told = [checkpoint.get("kind") if kind == "checkpoint" else "imported", checkpoint.get("architecture")]
        found.append(thing(kind, digest, str(checkpoint.get("name", kind)), " ".join(filter(None, told)) or None))
    if digest := checkpoint.get("made_from"):
        found.append(thing("checkpoint", digest, "source", "what the import was held against"))
    if digest := checkpoint.get("base_digest"):
        found.append(thing("base", digest, "base", "of the adapter"))
    name = f"{row.recipe_name} v{kept['version']}" if "version" in kept else row.recipe_name
    found.append({"id": f"recipe:{name}", "kind": "recipe", "name": name, "digest": None, "detail": row.precision})
    if job is not None and job.prompts_digest:
        found.append(thing("prompts", job.prompts_digest, "domain prompts"))
    if job is not None and job.calibration_digest:
        found.append(thing("calibration", job.calibration_digest, "calibration text"))
    return {one["id"]: one for one in found}


def _published(row: VersionRow) -> Json:
    return thing("artifact", row.artifact_digest, "published files")


@dataclass(frozen=True)
class _Origin:
    """What steps that really ran left: their rows, jobs, attempts and workers, by the id of the step."""

    rows: dict[int, StepRow]
    jobs: dict[int, JobRow]
    attempts: dict[int, list[AttemptRow]]
    workers: dict[str, WorkerRow]


def _steps(session: Session, job: JobRow, version: VersionRow, things: dict[str, Json]) -> list[Json]:
    """The steps of the rung that passed, in their order; the things that they made are added to `things`."""
    ours = or_(StepRow.rung == job.rung, StepRow.kind.in_(ONCE_A_JOB))
    query = select(StepRow).where(StepRow.job_id == job.id, ours).order_by(StepRow.position)
    rows = session.scalars(query).all()
    origin = _origin(session, [row.reused_step_id or row.id for row in rows])
    facts, done = job_facts(session, job.id), done_steps(session, job.id)
    found = []
    for row in rows:
        kind = StepKind(row.kind)
        made = _made(kind, row, version)
        for one in made:
            things.setdefault(one["id"], one)
        used = [one for one in _used(kind, facts, done, version, things) if one in things]
        found.append(_step_view(row, job, origin, used, [one["id"] for one in made]))
    return found


def _origin(session: Session, step_ids: list[int]) -> _Origin:
    rows = {row.id: row for row in session.scalars(select(StepRow).where(StepRow.id.in_(step_ids)))}
    job_ids = {row.job_id for row in rows.values()}
    jobs = {row.id: row for row in session.scalars(select(JobRow).where(JobRow.id.in_(job_ids)))}
    attempts: dict[int, list[AttemptRow]] = {}
    query = select(AttemptRow).where(AttemptRow.step_id.in_(step_ids)).order_by(AttemptRow.step_id, AttemptRow.fence)
    for attempt in session.scalars(query):
        attempts.setdefault(attempt.step_id, []).append(attempt)
    worker_ids = {attempt.worker_id for found in attempts.values() for attempt in found}
    workers = {row.id: row for row in session.scalars(select(WorkerRow).where(WorkerRow.id.in_(worker_ids)))}
    return _Origin(rows, jobs, attempts, workers)


def _made(kind: StepKind, row: StepRow, version: VersionRow) -> list[Json]:
    report = version.provenance.get("report_digest")
    if kind is StepKind.VALIDATE:
        return [thing("report", report, "report", version.verdict)] if report else []
    if kind is StepKind.PUBLISH:
        return [thing("artifact", version.artifact_digest, "published files")]
    return [thing("artifact", row.artifact_digest, ARTIFACT_NAMES[kind])] if row.artifact_digest else []


def _used(kind: StepKind, facts: JobFacts, done: Done, version: VersionRow, things: dict[str, Json]) -> list[str]:
    kinds = {"checkpoint", "model", "base"} if kind is StepKind.INGEST or kind in READS_CHECKPOINT else set()
    if kind in FOLLOWS_RECIPE:
        kinds.add("recipe")
    if kind in ASKS_PROMPTS:
        kinds.add("prompts")
    if kind in (StepKind.CONVERT, StepKind.QUANTIZE) and spec_of(kind, facts, done).get("calibration") is not None:
        kinds.add("calibration")
    used = [one["id"] for one in things.values() if one["kind"] in kinds]
    used += [thing_id("artifact", digest) for digest in artifacts_of(kind, facts, done).values()]
    if kind is StepKind.PUBLISH:
        report = version.provenance.get("report_digest")
        used += [thing_id("artifact", version.package_digest), *([thing_id("report", report)] if report else [])]
    return used


def _step_view(row: StepRow, job: JobRow, origin: _Origin, used: list[str], made: list[str]) -> Json:
    source = origin.rows[row.reused_step_id or row.id]
    attempts = origin.attempts.get(source.id, [])
    worker_id = attempts[-1].worker_id if attempts else source.worker_id
    worker = origin.workers.get(worker_id or "")
    source_job = origin.jobs[source.job_id]
    times = (source.started_at, source.finished_at)
    return {
        "kind": row.kind,
        "state": row.state,
        "key": row.key,
        "fingerprint": row.fingerprint,
        "used": used,
        "made": made,
        "is_reused": row.reused_step_id is not None,
        # What another team has submitted is not this team's business; that it was reused is.
        "reused_job": source_job.id if row.reused_step_id is not None and source_job.team == job.team else None,
        "worker_id": worker_id,
        "host": worker.host if worker else None,
        "toolchain": worker.toolchain if worker else {},
        "started_at": times[0],
        "finished_at": times[1],
        "seconds": round(times[1] - times[0], 3) if times[0] is not None and times[1] is not None else None,
        "attempts": [_attempt_view(attempt) for attempt in attempts],
    }


def _attempt_view(row: AttemptRow) -> dict[str, Any]:
    return {
        "number": row.number,
        "worker_id": row.worker_id,
        "outcome": row.outcome,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "cpu_s": row.cpu_s,
        "peak_rss_bytes": row.peak_rss_bytes,
    }
