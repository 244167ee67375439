"""A worker's own view of its lease: when it sends heartbeats, and when it stops believing in them."""

import threading
from pathlib import Path

import pytest
from redis import Redis

from olivepress import jobs
from olivepress.database import steps
from olivepress.database.sessions import Database
from olivepress.database.steps import Claim, Ending
from olivepress.errors import ServiceUnavailable
from olivepress.jobs import AttemptOutcome, StepKind
from olivepress.queues import Ring
from olivepress.settings import Settings
from olivepress.store import DirectoryStore
from tests.integration.database_cases import OFFER, OTHER, claimed, on_both_databases, step_of, submit_paths
from workers import lease as lease_module
from workers.lease import Lease, LeaseLost
from workers.runtime import Runtime

pytestmark = on_both_databases


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease_module, "time", clock)
    return clock


@pytest.fixture
def runtime(database: Database, tmp_path: Path) -> Runtime:
    return Runtime(
        settings=Settings(shutdown_grace_s=5),
        database=database,
        store=DirectoryStore(tmp_path / "store"),
        # Never connected: a lease does not ring.
        ring=Ring(Redis()),
        offer=OFFER,
        workspaces=tmp_path,
        shutdown=threading.Event(),
    )


@pytest.fixture
def held(database: Database) -> Claim:
    (job,) = submit_paths(database, "/models/a")
    return claimed(database, job, StepKind.INGEST)


def unreachable(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ServiceUnavailable("the database does not answer")

    monkeypatch.setattr(database, "write", refuse)


def test_progress_is_written_soon_and_an_unchanged_one_only_when_a_heartbeat_is_due(
    runtime: Runtime, held: Claim, clock: Clock, database: Database
) -> None:
    lease = Lease(held, runtime)
    clock.now += 1
    lease.keep("hashing", 0.5)
    first = step_of(database, held.job_id, StepKind.INGEST)
    assert (first.phase, first.share) == ("hashing", 0.5)
    clock.now += 1
    lease.keep("hashing", 0.5)
    assert step_of(database, held.job_id, StepKind.INGEST).lease_expires_at == first.lease_expires_at
    clock.now += jobs.HEARTBEAT_EVERY_S
    lease.keep("hashing", 0.5)
    renewed = step_of(database, held.job_id, StepKind.INGEST).lease_expires_at
    assert renewed is not None
    assert first.lease_expires_at is not None
    assert renewed > first.lease_expires_at


def test_a_worker_whose_fence_moved_on_lets_go(runtime: Runtime, held: Claim, clock: Clock, database: Database) -> None:
    with database.write() as session:
        steps.hand_back(session, held, Ending(AttemptOutcome.SHUTDOWN))
    claimed(database, held.job_id, StepKind.INGEST, OTHER)
    lease = Lease(held, runtime)
    clock.now += jobs.HEARTBEAT_EVERY_S
    with pytest.raises(LeaseLost, match="somebody else"):
        lease.keep("hashing", 0.1)


def test_a_short_outage_of_the_database_ends_no_step(
    runtime: Runtime, held: Claim, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(held, runtime)
    unreachable(runtime.database, monkeypatch)
    for _ in range(2):
        clock.now += jobs.HEARTBEAT_EVERY_S
        lease.keep("hashing", 0.1)


def test_without_the_database_for_most_of_its_lease_a_worker_ends_its_own_child(
    runtime: Runtime, held: Claim, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(held, runtime)
    unreachable(runtime.database, monkeypatch)
    clock.now += jobs.SELF_FENCE_S + 1
    with pytest.raises(LeaseLost, match="could not be reached"):
        lease.keep("hashing", 0.1)


def test_a_running_step_is_given_the_grace_when_the_worker_shuts_down(
    runtime: Runtime, held: Claim, clock: Clock
) -> None:
    lease = Lease(held, runtime)
    assert not lease.must_let_go()
    runtime.shutdown.set()
    assert not lease.must_let_go()
    clock.now += 6
    assert lease.must_let_go()
