"""A worker's own view of its lease: when it sends heartbeats, and when it stops believing in them."""

from pathlib import Path

import pytest

from olivepress import jobs
from olivepress.database import attempt_logs, steps
from olivepress.database.attempt_logs import Noted
from olivepress.database.sessions import Database, Session
from olivepress.database.steps import Claim, Ending
from olivepress.errors import ServiceUnavailable
from olivepress.jobs import AttemptOutcome, StepKind
from tests.integration.database_cases import OTHER, claimed, on_both_databases, step_of, submit_paths
from tests.integration.execution_cases import attempts_of, runtime_over, the_attempt
from workers import lease as lease_module
from workers.lease import Lease, LeaseLost
from workers.runtime import Runtime

pytestmark = on_both_databases


class Clock:
    """A monotonic clock that a test moves, and that moves while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease_module, "time", clock)
    return clock


@pytest.fixture
def runtime(database: Database, tmp_path: Path) -> Runtime:
    return runtime_over(database, tmp_path, shutdown_grace_s=5)


@pytest.fixture
def held(database: Database) -> Claim:
    (job,) = submit_paths(database, "/models/a")
    return claimed(database, job, StepKind.INGEST)


@pytest.fixture
def lease(held: Claim, runtime: Runtime, clock: Clock) -> Lease:
    return Lease(held, runtime, asked_at=clock.now)


class Outage:
    """The database refuses to write while it lasts; with `lost_answers` it commits, and nobody hears of it."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
        self.until, self.lost_answers, self.tries = 0.0, 0, 0
        self._clock, self._write = clock, database.write
        monkeypatch.setattr(database, "write", self.write)

    def write(self) -> object:
        self.tries += 1
        if self._clock.now < self.until:
            raise ServiceUnavailable("the database does not answer")
        if self.lost_answers:
            self.lost_answers -= 1
            return _LostAnswer(self._write())
        return self._write()


class _LostAnswer:
    def __init__(self, transaction: object) -> None:
        self._transaction = transaction

    def __enter__(self) -> Session:
        return self._transaction.__enter__()  # type: ignore[attr-defined,no-any-return]

    def __exit__(self, *error: object) -> None:
        self._transaction.__exit__(*error)  # type: ignore[attr-defined]
        raise ServiceUnavailable("the connection was cut during the commit")


@pytest.fixture
def outage(runtime: Runtime, held: Claim, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Outage:
    return Outage(runtime.database, monkeypatch, clock)


def failing(held: Claim) -> object:
    ending = Ending(AttemptOutcome.FAILED, error_class="X", error_message="x")
    return lambda session: steps.fail(session, held, ending, may_retry=True)


def test_progress_is_written_soon_and_an_unchanged_one_only_when_a_heartbeat_is_due(
    lease: Lease, held: Claim, clock: Clock, database: Database
) -> None:
    clock.now += 1
    lease.show("hashing", 0.5)
    lease.beat()
    first = step_of(database, held.job_id, StepKind.INGEST)
    assert (first.phase, first.share) == ("hashing", 0.5)
    clock.now += 1
    lease.beat()
    assert step_of(database, held.job_id, StepKind.INGEST).lease_expires_at == first.lease_expires_at
    clock.now += jobs.HEARTBEAT_EVERY_S
    lease.beat()
    renewed = step_of(database, held.job_id, StepKind.INGEST).lease_expires_at
    assert renewed is not None and first.lease_expires_at is not None
    assert renewed > first.lease_expires_at


def test_new_log_lines_are_written_every_two_seconds_and_nothing_without_them(
    lease: Lease, held: Claim, clock: Clock, database: Database
) -> None:
    noted = Noted("a", 1, 5, 0.5)
    with lease.noting(lambda: noted):
        lease.beat()
        row = the_attempt(database, held.job_id)
        assert (row.log_tail, row.log_lines, row.peak_rss_bytes, row.cpu_s) == ("a", 1, 5, 0.5)
        lease_before = step_of(database, held.job_id, StepKind.INGEST).lease_expires_at
        noted = Noted("a\nb", 2, 6, 0.6)
        clock.now += 1
        lease.beat()
        assert the_attempt(database, held.job_id).log_lines == 1
        clock.now += 1
        lease.beat()
        assert the_attempt(database, held.job_id).log_tail == "a\nb"
        renewed = step_of(database, held.job_id, StepKind.INGEST).lease_expires_at
        assert renewed is not None and lease_before is not None and renewed > lease_before
        clock.now += 3
        lease.beat()
        assert step_of(database, held.job_id, StepKind.INGEST).lease_expires_at == renewed


def test_what_a_running_attempt_noted_survives_its_rescue(lease: Lease, held: Claim, database: Database) -> None:
    with lease.noting(lambda: Noted("last words", 1, 5, 0.5)):
        lease.beat()
    with database.write() as session:
        assert steps.rescue(session, ["worker-1"]) == [held.step_id]
    row = the_attempt(database, held.job_id)
    assert (row.outcome, row.log_tail, row.peak_rss_bytes) == (AttemptOutcome.LEASE_LOST, "last words", 5)


def test_a_worker_whose_fence_moved_on_lets_go_and_writes_nothing_into_the_next_attempt(
    lease: Lease, held: Claim, clock: Clock, database: Database
) -> None:
    with database.write() as session:
        steps.hand_back(session, held, Ending(AttemptOutcome.SHUTDOWN))
    claimed(database, held.job_id, StepKind.INGEST, OTHER)
    clock.now += jobs.HEARTBEAT_EVERY_S
    with lease.noting(lambda: Noted("late", 1)):
        lease.beat()
    with pytest.raises(LeaseLost, match="somebody else"):
        lease.check()
    assert [row.log_tail for row in attempts_of(database, held.job_id)] == [None, None]
    with database.write() as session:
        attempt_logs.note(session, held, Noted("late", 1))
    assert [row.log_tail for row in attempts_of(database, held.job_id)] == [None, None]


def test_a_heartbeat_that_failed_is_sent_again_after_two_seconds(lease: Lease, clock: Clock, outage: Outage) -> None:
    clock.now += jobs.HEARTBEAT_EVERY_S
    outage.until = clock.now + 3
    for _ in range(8):
        lease.beat()
        clock.now += 0.5
    assert outage.tries == 2
    lease.beat()
    assert outage.tries == 3
    assert lease.deadline() == clock.now + jobs.SELF_FENCE_S
    lease.beat()
    assert outage.tries == 3


def test_without_the_database_for_most_of_its_lease_a_worker_gives_the_step_up(
    lease: Lease, clock: Clock, outage: Outage
) -> None:
    outage.until = clock.now + 1000
    clock.now += jobs.SELF_FENCE_S - 1
    lease.beat()
    lease.check()
    clock.now += 1
    with pytest.raises(LeaseLost, match="could not be reached"):
        lease.check()


def test_a_heartbeat_that_comes_through_after_the_child_was_ended_brings_nothing_back(
    lease: Lease, clock: Clock
) -> None:
    killed: list[bool] = []
    clock.now += jobs.SELF_FENCE_S
    lease.give_up(lambda: killed.append(True))
    lease.beat()
    assert killed == [True]
    with pytest.raises(LeaseLost, match="could not be reached"):
        lease.check()


def test_the_end_of_an_attempt_is_written_after_an_outage(
    lease: Lease, held: Claim, database: Database, clock: Clock, outage: Outage
) -> None:
    outage.until = clock.now + 20
    assert lease.finish(AttemptOutcome.FAILED, failing(held)) is AttemptOutcome.FAILED  # type: ignore[arg-type]
    assert outage.tries > 10
    assert the_attempt(database, held.job_id).outcome == AttemptOutcome.FAILED


def test_an_end_whose_answer_was_lost_counts_once_and_as_ours(
    lease: Lease, held: Claim, database: Database, outage: Outage
) -> None:
    outage.lost_answers = 1
    assert lease.finish(AttemptOutcome.FAILED, failing(held)) is AttemptOutcome.FAILED  # type: ignore[arg-type]
    assert outage.tries == 2
    assert the_attempt(database, held.job_id).outcome == AttemptOutcome.FAILED
    assert step_of(database, held.job_id, StepKind.INGEST).attempts == 1


def test_an_end_that_comes_after_a_rescue_is_discarded(lease: Lease, held: Claim, database: Database) -> None:
    with database.write() as session:
        steps.rescue(session, ["worker-1"])
    with pytest.raises(LeaseLost, match="somebody else"):
        lease.finish(AttemptOutcome.FAILED, failing(held))  # type: ignore[arg-type]
    assert the_attempt(database, held.job_id).outcome == AttemptOutcome.LEASE_LOST


def test_an_end_is_given_up_when_the_outage_lasts_for_most_of_the_lease(
    lease: Lease, held: Claim, clock: Clock, outage: Outage
) -> None:
    outage.until = clock.now + 1000
    started = clock.now
    with pytest.raises(LeaseLost, match="could not be reached"):
        lease.finish(AttemptOutcome.FAILED, failing(held))  # type: ignore[arg-type]
    assert clock.now - started == pytest.approx(jobs.SELF_FENCE_S, abs=1)


def test_a_running_step_is_given_the_grace_when_the_worker_shuts_down(
    lease: Lease, runtime: Runtime, clock: Clock
) -> None:
    assert not lease.must_let_go()
    runtime.shutdown.set()
    assert not lease.must_let_go()
    clock.now += 6
    assert lease.must_let_go()
