"""Published versions whose making the database knows, and what measuring them again gives."""

from typing import Any

from sqlalchemy import select

from olivepress.database import steps
from olivepress.database.registry_views import version as version_view
from olivepress.database.sessions import Database
from olivepress.database.tables import JobRow, StepRow
from olivepress.database.versions import Publication, publish_version
from olivepress.database.workers import WorkerFacts, register, stopped
from olivepress.jobs import JobId, StepKind, digest_of
from olivepress.registry import parse_reference
from olivepress.steps import StepResult
from tests.integration.database_cases import (
    DEFAULT_STEPS,
    OFFER,
    RESULTS,
    claimed,
    submit_paths,
    succeed,
    worker_facts,
)

RUNTIME = "foundry-local-sdk"
GATE = {"name": "edge_cases", "limit": True, "figure": False, "verdict": "failed", "note": "crashed: empty"}


def everything(digest: str) -> bool:
    """A store that has all artifacts."""
    return True


def report(runtime: str, *gates: dict[str, Any]) -> dict[str, Any]:
    """What validate measured with this runtime."""
    return {"size_bytes": 7, "gates": list(gates), "certificate": {"status": "passed", "runtime": {RUNTIME: runtime}}}


def validated(runtime: str, *gates: dict[str, Any]) -> StepResult:
    """The result of a validate step with this runtime and these gates, which failed."""
    return StepResult({"verdict": "failed" if gates else "passed", "report": report(runtime, *gates)})


def published(database: Database, path: str = "/c/support", runtime: str = "2.2.1", **manifest: Any) -> str:
    """A version, as NAME:1, that a job published with a certificate of this runtime."""
    (job_id,) = submit_paths(database, path, **manifest)
    own = digest_of(path)
    for kind in DEFAULT_STEPS:
        held = claimed(database, job_id, kind)
        result = validated(runtime) if kind is StepKind.VALIDATE else RESULTS[kind]
        if kind is StepKind.INGEST:
            result = StepResult(result.result | {"checkpoint_digest": own})
        elif result.artifact_digest:
            result = StepResult(result.result, digest_of([own, kind.value]))
        if kind is StepKind.PUBLISH:
            return _publish(database, held, job_id, runtime)
        assert succeed(database, held, result)
    raise AssertionError("no job publishes")


def _publish(database: Database, held: steps.Claim, job_id: JobId, runtime: str) -> str:
    with database.write() as session:
        job = session.get_one(JobRow, job_id)
        query = select(StepRow.artifact_digest).where(StepRow.job_id == job_id, StepRow.kind == StepKind.PACKAGE)
        wanted = Publication(
            job_id=job_id,
            team=job.team,
            model_name=job.model_name,
            alias=job.alias,
            package_digest=session.scalars(query).one() or "",
            recipe_name=job.recipe_name,
            precision="int4",
            family="qwen2",
            report=report(runtime),
            provenance={},
        )
        made = publish_version(session, wanted, lambda number: (digest_of([job_id, number]), 10))
        result = StepResult({"model": made.model_name, "number": made.number}, made.artifact_digest)
        assert steps.succeed(session, held, result, OFFER, everything)
    return f"{made.model_name}:{made.number}"


def looked_at(database: Database, version: str) -> dict[str, Any]:
    """A version as the API shows it."""
    with database.read() as session:
        return version_view(session, "default", parse_reference(version))


def worker_with(database: Database, runtime: str, worker_id: str = OFFER.worker_id) -> None:
    """A living worker whose runtime has this version; its offer is OFFER's."""
    facts = vars(worker_facts()) | {"id": worker_id, "toolchain": {RUNTIME: runtime}}
    with database.write() as session:
        register(session, WorkerFacts(**facts))


def end_worker(database: Database, worker_id: str = OFFER.worker_id) -> None:
    """That worker says that it stops."""
    with database.write() as session:
        stopped(session, worker_id)
