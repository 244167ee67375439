"""A step's process has no way to the signing key, nor to the database, Redis or the API by what it inherited."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from olivepress.database import migrations
from olivepress.database.sessions import Database
from olivepress.database.workers import alive
from olivepress.evidence.signing import SigningKey
from olivepress.jobs import StepId, StepKind
from olivepress.queues import celery_app, send
from olivepress.settings import Settings
from tests.doubles.orders import Order
from tests.doubles.services import ADMIN_KEY, Service, double, environment
from tests.integration.database_cases import step_of
from tests.integration.execution_cases import attempts_of, eventually, ordered
from tests.redis_server import redis_server


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worker")


@pytest.fixture(scope="module")
def worker(directory: Path) -> Iterator[Service]:
    """A worker with a signing key, which runs a step that has started a process in a session of its own."""
    url = f"sqlite:///{directory / 'olivepress.sqlite'}"
    database = Database(url)
    migrations.upgrade(database)
    key_file = directory / "secret" / "signing-key.pem"
    key_file.parent.mkdir()
    SigningKey.load_or_create(key_file)
    with redis_server(directory / "redis") as redis:
        given = {"shutdown_grace_s": "0", "slots": "1", "signing_key_file": str(key_file)}
        variables = environment(directory, url, redis.url, directory, **given) | {
            "AWS_SECRET_ACCESS_KEY": "of-the-bucket"
        }
        service = Service("worker", double("worker"), variables, directory / "worker.log")
        try:
            service.start()
            eventually(lambda: _workers(database), within_s=60)
            job_id = ordered(database, directory, ingest=Order(seconds=120, log_lines=1200, grandchild="session"))
            app = celery_app(Settings(database_url=url, redis_url=SecretStr(redis.url)))
            step_id = StepId(step_of(database, job_id, StepKind.INGEST).id)
            send(app, StepKind.INGEST, step_id, _workers(database)[0], "ingest")
            app.close()
            eventually(lambda: any("grandchild" in (row.log_tail or "") for row in attempts_of(database, job_id)))
            yield service
        finally:
            service.stop()
            database.dispose()


def _workers(database: Database) -> list[str]:
    with database.read() as session:
        return [row.id for row in alive(session)]


def test_what_a_step_inherited_leads_to_no_secret(worker: Service, directory: Path) -> None:
    pem = (directory / "secret/signing-key.pem").read_text().splitlines()[1]
    secrets = [pem, "signing-key.pem", ADMIN_KEY, "of-the-bucket", "olivepress.sqlite", "redis://", "unix://"]
    own, *below = worker.family()
    # The worker itself was given all of it, so that this test would see what it looks for.
    held = _environment(own)
    assert all(secret in held for secret in (ADMIN_KEY, "of-the-bucket", "olivepress.sqlite", "signing-key.pem"))
    # The forkserver, the resource tracker, the keeper, the step and what it started.
    assert len(below) >= 4

    for process in below:
        seen = _environment(process) + " ".join(process.cmdline()) + " ".join(_open_files(process))
        assert not [secret for secret in secrets if secret in seen], process.cmdline()


def test_a_step_holds_nothing_of_the_key_in_its_memory(worker: Service, directory: Path) -> None:
    pem = (directory / "secret/signing-key.pem").read_bytes().splitlines()[1]
    below = worker.family()[1:]

    assert below
    for process in below:
        assert not _holds(process, pem), process.cmdline()


def _environment(process: psutil.Process) -> str:
    return Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace")


def _open_files(process: psutil.Process) -> list[str]:
    return [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir() if link.is_symlink()]


def _holds(process: psutil.Process, wanted: bytes) -> bool:
    """Whether its private memory holds these bytes (Linux)."""
    if not os.access(f"/proc/{process.pid}/mem", os.R_OK):
        pytest.skip("this user may not look into a process here")
    with Path(f"/proc/{process.pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
            place, rights, *_ = line.split()
            first, last = (int(part, 16) for part in place.split("-"))
            if not rights.startswith("rw") or "[vvar" in line:
                continue
            memory.seek(first)
            try:
                if wanted in memory.read(last - first):
                    return True
            except OSError:
                continue
    return False
