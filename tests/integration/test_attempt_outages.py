"""A running step and a PostgreSQL that goes away: it goes on, its end is written, or nothing of it is."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from olivepress import jobs
from olivepress.database import steps
from olivepress.database.sessions import Database
from olivepress.errors import ServiceUnavailable
from olivepress.jobs import AttemptOutcome, StepId, StepKind, StepState
from tests.doubles.orders import Order
from tests.integration.database_cases import OTHER, POSTGRESQL, step_of
from tests.integration.execution_cases import (
    attempts_of,
    eventually,
    forkserver,
    grandchild_of,
    is_alive,
    ordered,
    polled,
    run_step,
    running_step,
    runtime_over,
    the_attempt,
)
from tests.postgres import PostgresServer
from workers import attempt
from workers.runtime import Runtime

pytestmark = pytest.mark.parametrize("database_kind", [POSTGRESQL], indirect=True)
LEASE_S = 9.0


@pytest.fixture(scope="module", autouse=True)
def _forkserver() -> Iterator[None]:
    with forkserver():
        yield


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """All times of the lease, in the product's proportions."""
    share = LEASE_S / jobs.LEASE_S
    for name in ("LEASE_S", "HEARTBEAT_EVERY_S", "SELF_FENCE_S"):
        monkeypatch.setattr(jobs, name, getattr(jobs, name) * share)


@pytest.fixture
def server(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """The server, which a test may stop; it runs again afterwards."""
    yield postgres
    try:
        assert postgres.pid
    except AssertionError:
        postgres.start()


@pytest.fixture
def runtime(database: Database, server: PostgresServer, tmp_path: Path) -> Runtime:
    return runtime_over(database, tmp_path)


def is_printing(database: Database, job_id: int) -> bool:
    return any(row.log_lines for row in attempts_of(database, job_id))


@pytest.mark.parametrize("ends_meanwhile", [False, True])
def test_an_outage_of_twenty_seconds_ends_no_running_step(
    runtime: Runtime, server: PostgresServer, tmp_path: Path, ends_meanwhile: bool, request: pytest.FixtureRequest
) -> None:
    # The real figures for the step that is over in the middle of the outage; a third of them for the other.
    outage_s = 20.0 if ends_meanwhile else 3.0
    if not ends_meanwhile:
        request.getfixturevalue("short_lease")
    work_s = outage_s / 2 if ends_meanwhile else outage_s + 3
    job_id = ordered(runtime.database, tmp_path, ingest=Order(seconds=work_s, log_lines=round(10 * work_s)))
    with polled(runtime), running_step(runtime, job_id) as thread:
        eventually(lambda: is_printing(runtime.database, job_id))
        server.stop(immediate=True)
        stopped_at = time.monotonic()
        eventually(lambda: time.monotonic() - stopped_at >= outage_s, outage_s + 1)
        assert thread.is_alive()
        server.start()
    row = the_attempt(runtime.database, job_id)
    assert (row.outcome, row.exit_code, row.log_lines) == (AttemptOutcome.SUCCEEDED, 0, round(10 * work_s))
    assert step_of(runtime.database, job_id, StepKind.CONVERT).state == StepState.QUEUED


def test_an_outage_of_most_of_the_lease_ends_the_child_in_time_and_nothing_is_written(
    runtime: Runtime, server: PostgresServer, tmp_path: Path, short_lease: None
) -> None:
    database = runtime.database
    job_id = ordered(database, tmp_path, ingest=Order(seconds=60, log_lines=600, grandchild="session"))
    with running_step(runtime, job_id) as thread:
        eventually(lambda: is_printing(database, job_id))
        grandchild = grandchild_of(the_attempt(database, job_id).log_tail)
        assert grandchild is not None
        server.stop(immediate=True)
        took_s = eventually(lambda: not is_alive(grandchild), LEASE_S)
        assert took_s < jobs.SELF_FENCE_S + 1.5, "before anybody else may claim the step"
        eventually(lambda: not thread.is_alive())
    server.start()
    row = the_attempt(database, job_id)
    assert (row.outcome, step_of(database, job_id, StepKind.INGEST).state) == (None, StepState.RUNNING)
    assert "grandchild" in (row.log_tail or ""), "what it noted in time is there"


def test_a_late_end_is_discarded_when_the_step_runs_elsewhere(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = runtime.database
    job_id = ordered(database, tmp_path, ingest=Order(seconds=1.0, log_lines=10))
    # No heartbeat tells this worker: it finds out when it writes the end.
    monkeypatch.setattr("workers.lease.Lease.beat", lambda self: None)
    with running_step(runtime, job_id):
        eventually(lambda: attempts_of(database, job_id))
        step_id = StepId(step_of(database, job_id, StepKind.INGEST).id)
        with database.write() as session:
            assert steps.rescue(session, ["worker-1"]) == [step_id]
        monkeypatch.setattr(jobs, "RETRY_BASE_S", 0.0)

        def claimed_elsewhere() -> bool:
            with database.write() as session:
                return steps.claim(session, step_id, OTHER) is not None

        eventually(claimed_elsewhere)
    assert [row.outcome for row in attempts_of(database, job_id)] == [AttemptOutcome.LEASE_LOST, None]
    assert step_of(database, job_id, StepKind.INGEST).worker_id == OTHER.worker_id


def test_a_claim_in_an_outage_is_given_up_at_once(runtime: Runtime, server: PostgresServer, tmp_path: Path) -> None:
    job_id = ordered(runtime.database, tmp_path)
    step_id = StepId(step_of(runtime.database, job_id, StepKind.INGEST).id)
    server.stop(immediate=True)
    with pytest.raises(ServiceUnavailable), runtime.database.read() as session:
        session.connection()
    started = time.monotonic()
    attempt.run(step_id, runtime)
    assert time.monotonic() - started < 5.0
    server.start()
    run_step(runtime, job_id)
    assert the_attempt(runtime.database, job_id).outcome == AttemptOutcome.SUCCEEDED
