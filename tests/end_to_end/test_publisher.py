"""A publisher beside a worker without the key: only it publishes and signs reports, and it runs no step's code."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from olivepress.database import migrations, signing_keys, views
from olivepress.database.sessions import Database
from olivepress.evidence.report_seal import verify_report
from olivepress.evidence.signing import PublicKey, SigningKey
from olivepress.evidence.verification import directory_content, verify
from olivepress.job_orders import ValidationOrder
from olivepress.jobs import FINAL_JOB_STATES, JobState, StepKind
from olivepress.measuring_again import validate
from olivepress.registry import parse_reference
from olivepress.reports.document import document_of_job
from olivepress.store import DirectoryStore
from tests.doubles.services import Service, double, environment, product
from tests.integration.database_cases import job_of, step_of
from tests.integration.execution_cases import attempts_of, eventually, ordered
from tests.redis_server import redis_server

pytestmark = pytest.mark.timeout(180)
WITHIN_S = 60.0


@dataclass
class Stack:
    """A scheduler, a worker without a key, and a publisher, each a process."""

    directory: Path
    database: Database
    publisher: Service
    key: PublicKey

    def ids(self) -> dict[bool, str]:
        """The living workers' ids, by whether they sign."""
        with self.database.read() as session:
            alive = [worker for worker in views.workers(session) if worker["alive"]]
        return {worker["signing_key"] is not None: worker["id"] for worker in alive}

    def waits_for(self, job_id: int) -> list[str]:
        """What the steps of a job wait for, in words."""
        with self.database.read() as session:
            return [step["waits_for"] or "" for step in views.job(session, job_id)["steps"]]

    def ended(self, job_id: int) -> str:
        """A job's state once it is over."""
        eventually(lambda: job_of(self.database, job_id).state in FINAL_JOB_STATES, within_s=WITHIN_S)
        return job_of(self.database, job_id).state


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    url = f"sqlite:///{tmp_path / 'olivepress.sqlite'}"
    database = Database(url)
    migrations.upgrade(database)
    key_file = tmp_path / "signing-key.pem"
    key = SigningKey.load_or_create(key_file).public
    with redis_server(tmp_path / "redis") as redis:
        plain = environment(tmp_path, url, redis.url, tmp_path, slots="1", shutdown_grace_s="0")
        with_key = plain | {"OLIVEPRESS_SIGNING_KEY_FILE": str(key_file)}
        services = [
            Service("scheduler", double("scheduler"), plain, tmp_path / "scheduler.log"),
            Service("worker", double("worker"), plain, tmp_path / "worker.log"),
        ]
        publisher = Service("publisher", product("publisher"), with_key, tmp_path / "publisher.log")
        made = Stack(tmp_path, database, publisher, key)
        try:
            publisher.start()
            eventually(lambda: True in made.ids(), within_s=WITHIN_S)
            for service in services:
                service.start()
            eventually(lambda: False in made.ids(), within_s=WITHIN_S)
            yield made
        finally:
            for service in (*services, publisher):
                service.stop()
            database.dispose()


def test_only_the_publisher_publishes_and_what_waits_for_it_goes_on_when_it_is_back(stack: Stack) -> None:
    job_id = ordered(stack.database, stack.directory)
    assert stack.ended(job_id) == JobState.SUCCEEDED
    runs = {
        kind: attempts_of(stack.database, job_id, kind)[-1].worker_id for kind in (StepKind.CONVERT, StepKind.PUBLISH)
    }
    assert runs == {StepKind.CONVERT: stack.ids()[False], StepKind.PUBLISH: stack.ids()[True]}
    DirectoryStore(stack.directory / "store").materialise(_published(stack, job_id), stack.directory / "out")
    assert verify(directory_content(stack.directory / "out"), {stack.key.id: stack.key}.get).is_verified

    assert stack.publisher.stop() == 0
    with stack.database.read() as session:
        version = views.job(session, job_id)["version"]
    order = validate(stack.database, lambda digest: True, "default", parse_reference(version), ValidationOrder())
    (again,) = order.job_ids
    eventually(lambda: "has the signing key" in " ".join(stack.waits_for(again)), within_s=WITHIN_S)

    stack.publisher.start()
    assert stack.ended(again) == JobState.SUCCEEDED
    with stack.database.read() as session:
        document = document_of_job(views.job(session, again))
        assert [key["id"] for key in signing_keys.keys(session)] == [stack.key.id]
    assert verify_report(document, {stack.key.id: stack.key}.get).is_verified


def _published(stack: Stack, job_id: int) -> str:
    return step_of(stack.database, job_id, StepKind.PUBLISH).artifact_digest or ""
