"""A worker as a process of its own, over doubles of the toolchain: asked to end, asked twice, killed."""

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from olivepress.database import migrations
from olivepress.database.sessions import Database
from olivepress.database.workers import alive
from olivepress.jobs import AttemptOutcome, StepId, StepKind, StepState
from olivepress.queues import celery_app, send
from olivepress.settings import Settings
from tests.doubles.orders import Order
from tests.doubles.services import Service, double, environment
from tests.integration.database_cases import step_of
from tests.integration.execution_cases import (
    attempts_of,
    eventually,
    grandchild_of,
    is_alive,
    ordered,
    the_attempt,
)
from tests.redis_server import redis_server

NOTHING_LEFT_WITHIN_S = 2.0
GRACE_S = 1.0
LONG = Order(seconds=120, log_lines=1200, ignore_signals=True, grandchild="session")


@dataclass
class Bench:
    """A worker process, and the scheduler's part played by the test."""

    service: Service
    database: Database
    settings: Settings
    checkpoints: Path

    def start(self) -> None:
        """Start it and wait until it takes steps."""
        before = set(self._workers())
        self.service.start()
        eventually(lambda: set(self._workers()) - before, within_s=60)

    def running(self) -> int:
        """A job whose first step runs on the worker and has started a process in a session of its own."""
        job_id = ordered(self.database, self.checkpoints, ingest=LONG)
        step_id = StepId(step_of(self.database, job_id, StepKind.INGEST).id)
        app = celery_app(self.settings)
        send(app, StepKind.INGEST, step_id, self._workers()[0], "ingest")
        app.close()

        def has_grandchild() -> bool:
            return any("grandchild" in (row.log_tail or "") for row in attempts_of(self.database, job_id))

        eventually(has_grandchild)
        return job_id

    def _workers(self) -> list[str]:
        with self.database.read() as session:
            return [row.id for row in alive(session)]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    url = f"sqlite:///{tmp_path / 'olivepress.sqlite'}"
    database = Database(url)
    migrations.upgrade(database)
    with redis_server(tmp_path / "redis") as redis:
        variables = environment(tmp_path, url, redis.url, tmp_path, shutdown_grace_s=str(GRACE_S), slots="1")
        service = Service("worker", double("worker"), variables, tmp_path / "worker.log")
        settings = Settings(database_url=url, redis_url=SecretStr(redis.url))
        bench = Bench(service, database, settings, tmp_path)
        try:
            bench.start()
            yield bench
        finally:
            service.kill()
            database.dispose()


@pytest.mark.parametrize("signals", [1, 3])
def test_a_worker_that_is_asked_to_end_hands_back_its_step_after_the_grace_and_exits_with_0(
    bench: Bench, signals: int
) -> None:
    job_id = bench.running()
    family = bench.service.family()
    for number in range(signals):
        asked_at = time.monotonic()
        bench.service.signal(signal.SIGTERM)
        if number + 1 < signals:
            # Each in the middle of the grace, and not as one.
            eventually(lambda since=asked_at: time.monotonic() - since > GRACE_S / 4)
    assert bench.service.ended() == 0, bench.service.last_lines()
    row = the_attempt(bench.database, job_id)
    assert (row.outcome, row.signal) == (AttemptOutcome.SHUTDOWN, signal.SIGKILL), bench.service.last_lines()
    step = step_of(bench.database, job_id, StepKind.INGEST)
    assert (step.state, step.attempts) == (StepState.QUEUED, 0)
    eventually(lambda: not any(map(is_alive, family)), NOTHING_LEFT_WITHIN_S)
    assert grandchild_of(row.log_tail) is None
    assert list((bench.checkpoints / "workspaces").iterdir()) == []


def test_nothing_of_a_killed_worker_is_left_and_the_next_one_gives_its_step_back(bench: Bench) -> None:
    job_id = bench.running()
    family = bench.service.family()
    grandchild = grandchild_of(the_attempt(bench.database, job_id).log_tail)
    assert grandchild is not None and grandchild in family
    bench.service.kill()
    eventually(lambda: not any(map(is_alive, family)), NOTHING_LEFT_WITHIN_S)
    assert step_of(bench.database, job_id, StepKind.INGEST).state == StepState.RUNNING
    bench.start()
    row = the_attempt(bench.database, job_id)
    assert row.outcome == AttemptOutcome.LEASE_LOST
    assert "grandchild" in (row.log_tail or ""), "its last lines are kept"
    assert step_of(bench.database, job_id, StepKind.INGEST).state == StepState.QUEUED
