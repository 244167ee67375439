"""Builders for tests over a real database: a batch of jobs, a worker's offer, claims."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from olivepress.database import steps
from olivepress.database.sessions import Database
from olivepress.database.steps import Claim
from olivepress.database.tables import JobRow, StepRow
from olivepress.database.unblocking import HasArtifact, Offer
from olivepress.database.workers import WorkerFacts
from olivepress.jobs import JobId, JobKind, StepId, StepKind
from olivepress.manifest import parse_manifest
from olivepress.recipes.recipe import BUILT_IN, DEFAULT_RECIPE
from olivepress.steps import StepResult, plan
from olivepress.submission import submit
from tests.postgres import PostgresServer

SQLITE, POSTGRESQL = "sqlite", "postgresql"
# One suite for both: a test or a module with this mark runs on each of them.
on_both_databases = pytest.mark.parametrize("database_kind", [SQLITE, POSTGRESQL], indirect=True)
_numbers = count(1)
DEFAULT_STEPS = plan(JobKind.CONVERT, BUILT_IN[DEFAULT_RECIPE])
OFFER = Offer("worker-1", "toolchain", "toolchain-on-hardware")
OTHER = Offer("worker-2", "toolchain", "toolchain-on-hardware")
INGESTED = {
    "checkpoint_digest": "c0ffee",
    "kind": "full",
    "architecture": "Qwen2ForCausalLM",
    "family": "qwen2",
    "context_length": 4096,
    "size_bytes": 10,
    "base": None,
}
RESULTS: dict[StepKind, StepResult] = {
    StepKind.INGEST: StepResult(INGESTED),
    StepKind.CONVERT: StepResult({"parity": {}, "notes": []}, "a" * 64),
    StepKind.QUANTIZE: StepResult({"parity": {}, "notes": []}, "f" * 64),
    StepKind.REFERENCE: StepResult({"positions": {}, "notes": []}, "e" * 64),
    StepKind.PACKAGE: StepResult({"prompt_template": None, "prompt_template_reason": None, "size_bytes": 1}, "b" * 64),
    StepKind.VALIDATE: StepResult({"verdict": "passed", "report": {"gates": []}}),
    StepKind.PUBLISH: StepResult({"model": "m", "number": 1}),
}


def sqlite_url(directory: Path) -> str:
    """The URL of a SQLite file in this directory, which no other call gives."""
    return f"sqlite:///{directory / f'olivepress-{next(_numbers)}.sqlite'}"


@contextmanager
def fresh_postgresql_url(server: PostgresServer, template: str = "template1") -> Iterator[str]:
    """The URL of a new database on the server, dropped at the end."""
    name = f"test_{next(_numbers)}"
    yield server.create_database(name, template)
    server.drop_database(name)


def submit_paths(database: Database, *paths: str, **manifest: Any) -> list[JobId]:
    """A batch of these checkpoints; gives the ids of its jobs."""
    values = {"checkpoints": [{"path": path} for path in paths], **manifest}
    return submit(database, parse_manifest(values), [Path("/")]).job_ids


def worker_facts(slots: int = 1) -> WorkerFacts:
    """What the worker of OFFER says of itself when it starts."""
    return WorkerFacts(
        id=OFFER.worker_id,
        host="host",
        pid=1,
        pid_started_at=0.0,
        pid_space="here",
        pools=list(OFFER.pools),
        slots=slots,
        memory_bytes=OFFER.allowance_bytes * slots,
        disk_free_bytes=2**50,
        fingerprint=OFFER.fingerprint,
        timed_fingerprint=OFFER.timed_fingerprint,
        hardware={},
        toolchain={},
        architectures=[],
    )


def step_of(database: Database, job_id: int, kind: StepKind) -> StepRow:
    """The row of one step as it is now; on a ladder the last rung's."""
    query = select(StepRow).where(StepRow.job_id == job_id, StepRow.kind == kind).order_by(StepRow.rung.desc()).limit(1)
    with database.read() as session:
        return session.scalars(query).one()


def job_of(database: Database, job_id: int) -> JobRow:
    """The row of a job as it is now."""
    with database.read() as session:
        return session.get_one(JobRow, job_id)


def claim(database: Database, job_id: int, kind: StepKind, offer: Offer = OFFER) -> Claim | None:
    """Try to claim a step of a job."""
    with database.write() as session:
        return steps.claim(session, StepId(step_of(database, job_id, kind).id), offer)


def claimed(database: Database, job_id: int, kind: StepKind, offer: Offer = OFFER) -> Claim:
    """A claim that must succeed."""
    held = claim(database, job_id, kind, offer)
    assert held is not None
    return held


def succeed(
    database: Database,
    held: Claim,
    result: StepResult | None = None,
    offer: Offer = OFFER,
    has_artifact: HasArtifact = lambda digest: True,
) -> bool:
    """Finish a claimed step, remembering its result as the worker does."""
    remember_as = None if held.kind in (StepKind.INGEST, StepKind.PUBLISH) else held.key
    with database.write() as session:
        return steps.succeed(session, held, result or RESULTS[held.kind], offer, has_artifact, remember_as=remember_as)


def run_until(database: Database, job_id: int, last: StepKind) -> None:
    """Run a job's steps up to and with the given one."""
    for kind in DEFAULT_STEPS:
        succeed(database, claimed(database, job_id, kind))
        if kind is last:
            return
