"""A real API over a real database and store, and jobs in all their states, for tests of the API and its client."""

import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import Engine, event

from api.app import create_app
from olivepress.database import steps
from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database
from olivepress.database.steps import Ending
from olivepress.database.unblocking import done_steps
from olivepress.database.workers import WorkerFacts, register, take_lease
from olivepress.jobs import AttemptOutcome, StepKind, StepState, digest_of
from olivepress.settings import Settings
from olivepress.steps import StepResult
from olivepress.store import DirectoryStore
from tests.integration.database_cases import INGESTED, OFFER, claimed, job_of, sqlite_url, step_of, succeed
from workers.steps import publish

KEY = "the-admin-key"
CONVERT_NOTE = "lm_head.MatMul.weight stays in fp32"
REPORT: dict[str, Any] = {
    "schema_version": 1,
    "size_bytes": 3_540_000,
    "source_size_bytes": 15_250_000,
    "first_token_ms": {"median": 8.41, "p95": 9.9, "prompt_tokens": 24},
    "tokens_per_s": {"median": 412.3, "p95": 398.0},
    # More than PostgreSQL's integer holds.
    "peak_rss_bytes": 4_300_000_000,
    "prompts": {"total": 10, "with_expectation": 8, "passed": 7, "items": []},
    "certificate": {"status": "passed", "runtime": {}, "name": "c", "exchanges": [], "problem": None},
    "gates": [{"name": "certificate", "limit": True, "figure": True, "verdict": "passed", "note": ""}],
}
GATE_FAILED = REPORT | {
    "gates": [{"name": "prompts_passed", "limit": 0.8, "figure": 0.25, "verdict": "failed", "note": "2 of 8"}]
}
PACKAGE = {
    "genai_config.json": json.dumps({"model": {"context_length": 4096}, "search": {"max_length": 2048}}).encode(),
    "tokenizer/merges.txt": b"a b\n" * 50,
    "model.onnx.data": bytes(range(256)) * 1000,
    "empty.txt": b"",
}
WORSE_PACKAGE = PACKAGE | {"model.onnx.data": bytes(256_000)}


@dataclass
class Api:
    """The parts of an API, and how often it rang the scheduler."""

    database: Database
    store: DirectoryStore
    app: FastAPI
    http: TestClient
    rings: list[int] = field(default_factory=list)

    def submit(self, *paths: str, **manifest: Any) -> dict[str, Any]:
        """Submit these checkpoints over HTTP."""
        body = {"checkpoints": [{"path": path} for path in paths], **manifest}
        answer = self.http.post("/v1/batches", json=body)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def get(self, path: str, **params: Any) -> Any:
        """The JSON document of a GET that succeeds."""
        answer = self.http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextmanager
def api_over(database: Database, root: Path) -> Iterator[Api]:
    """An API as the service makes it, answering in this process."""
    rings: list[int] = []
    settings = Settings(data_dir=root, admin_key=SecretStr(KEY), checkpoint_roots="/models", flower_port=1)
    store = DirectoryStore(root / "store")
    app = create_app(settings, database, store, lambda: rings.append(1))
    with TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {KEY}"}) as http:
        yield Api(database, store, app, http, rings)


@contextmanager
def api_with_versions(root: Path, *packages: dict[str, bytes]) -> Iterator[Api]:
    """An API over a database of its own, where model a-int4 has a version of each package."""
    database = Database(sqlite_url(root))
    upgrade(database)
    with api_over(database, root) as api:
        for package in packages:
            (job,) = api.submit("/models/a", recipes=["cpu-int4"])["jobs"]
            publish_job(api, job, package)
        yield api
    database.dispose()


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The API behind a real socket; gives its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    ticks = threading.Event()
    while not server.started:
        ticks.wait(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def counted_queries(engine: Engine) -> Iterator[list[str]]:
    """The statements that are executed meanwhile."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


def validate(api: Api, job_id: int, report: dict[str, Any] = REPORT, package: dict[str, bytes] = PACKAGE) -> None:
    """Run a job's steps up to validate, with this package and report; what is remembered is not run."""
    found = ingested(api, job_id, package)
    gate_failed = any(gate["verdict"] == "failed" for gate in report["gates"])
    results = {
        StepKind.INGEST: found,
        StepKind.CONVERT: StepResult({"parity": {}, "notes": [CONVERT_NOTE]}, digest_of(found.result)),
        StepKind.PACKAGE: StepResult(
            {"prompt_template": None, "prompt_template_reason": None}, store_files(api, package)
        ),
        StepKind.REFERENCE: StepResult({"positions": {}, "notes": []}, store_files(api, {"reference.json": b"{}"})),
        StepKind.VALIDATE: StepResult({"verdict": "failed" if gate_failed else "passed", "report": report}),
    }
    for kind, result in results.items():
        if step_of(api.database, job_id, kind).state == StepState.QUEUED:
            assert succeed(api.database, claimed(api.database, job_id, kind), result)


def ingested(api: Api, job_id: int, package: dict[str, bytes] = PACKAGE) -> StepResult:
    """What ingest finds in a job's checkpoint: its content is its path and the package that it becomes."""
    path = job_of(api.database, job_id).checkpoint_path
    digest = digest_of([path, {name: content.hex() for name, content in package.items()}])
    found = {"checkpoint_digest": digest, "size_bytes": 15_250_000, "files": [], "dtype": "bfloat16"}
    return StepResult(INGESTED | found)


def publish_job(api: Api, job_id: int, package: dict[str, bytes] = PACKAGE) -> None:
    """Run a job to its end: its model version is published."""
    validate(api, job_id, package=package)
    held = claimed(api.database, job_id, StepKind.PUBLISH)
    with api.database.write() as session:
        published = publish.publish(session, api.store, job_id, done_steps(session, job_id))
        result = StepResult({"model": published.model_name, "number": published.number})
        assert steps.succeed(session, held, result, OFFER, api.store.has)


def fail_step(api: Api, job_id: int, kind: StepKind, message: str, *, may_retry: bool = False) -> None:
    """End an attempt of a step in error."""
    held = claimed(api.database, job_id, kind)
    ending = Ending(
        AttemptOutcome.FAILED,
        exit_code=1,
        error_class="BadCheckpoint",
        error_message=message,
        cpu_s=1.5,
        peak_rss_bytes=4_300_000_000,
        log_tail="first line\nlast line\n",
    )
    with api.database.write() as session:
        assert steps.fail(session, held, ending, may_retry=may_retry)


def start_worker(database: Database, worker_id: str = "host-1-abc", **changes: Any) -> None:
    """A worker that registered just now."""
    facts: dict[str, Any] = {
        "id": worker_id,
        "host": "host",
        "pid": 1,
        "pid_started_at": 0.0,
        "pid_space": "here",
        "pools": ["default"],
        "slots": 2,
        "memory_bytes": 24 * 2**30,
        "disk_free_bytes": 2**40,
        "fingerprint": "f" * 64,
        "timed_fingerprint": "t" * 64,
        "hardware": {"processor": "A processor", "cores": 2},
        "toolchain": {"olive-ai": "0.13.0", "onnxruntime-genai": "0.18.0"},
        "architectures": ["Qwen2ForCausalLM"],
    }
    with database.write() as session:
        register(session, WorkerFacts(**facts | changes))


def lead(database: Database, lease_s: float = 60.0) -> None:
    """A scheduler that leads."""
    with database.write() as session:
        assert take_lease(session, "scheduler", "scheduler-1", lease_s)


def store_files(api: Api, files: dict[str, bytes]) -> str:
    """The digest of an artifact of these files, in the store."""
    source = Path(tempfile.mkdtemp(prefix="source-", dir=api.store.root.parent))
    for path, content in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    return api.store.put_directory(source).digest
