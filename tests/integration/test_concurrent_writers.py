"""Many workers, an API and a scheduler on one database at once: nobody is told of a lock, and every job ends once."""

import random
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from olivepress import jobs
from olivepress.database import cancelling, dispatching, steps, workers
from olivepress.database.sessions import Database, DatabaseNow
from olivepress.database.steps import Claim, Ending
from olivepress.database.tables import AttemptRow, JobRow, StepRow
from olivepress.database.unblocking import Offer
from olivepress.jobs import AttemptOutcome, JobState, StepId, StepKind, StepState
from olivepress.manifest import parse_manifest
from olivepress.placement import Fairness
from olivepress.submission import submit
from tests.integration.database_cases import (
    DEFAULT_STEPS,
    OFFER,
    OTHER,
    claim,
    claimed,
    job_of,
    on_both_databases,
    step_of,
    submit_paths,
    succeed,
    worker_facts,
)

pytestmark = on_both_databases
WITHIN_S = 20.0
ERROR = Ending(AttemptOutcome.CRASHED, error_class="RuntimeCrashed", error_message="signal 9")


def at_once(calls: Iterable[Callable[[], object]]) -> None:
    """Run these in threads that start together; what one of them raises is raised here."""
    todo = list(calls)
    start, errors = threading.Barrier(len(todo)), list[BaseException]()

    def run(call: Callable[[], object]) -> None:
        start.wait()
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in todo]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def waiting(database: Database) -> list[tuple[StepId, int, StepKind]]:
    with database.read() as session:
        query = select(StepRow.id, StepRow.job_id, StepRow.kind).where(StepRow.state == StepState.QUEUED)
        return [(StepId(step), job, StepKind(kind)) for step, job, kind in session.execute(query)]


def is_over(database: Database) -> bool:
    with database.read() as session:
        open_jobs = select(func.count()).where(JobRow.state.not_in(jobs.FINAL_JOB_STATES))
        return session.scalar(open_jobs) == 0


def test_sixteen_workers_at_once_finish_every_step_exactly_once(database: Database) -> None:
    paths = [f"/models/{number}" for number in range(3)]
    submit_paths(database, *paths, recipes=["cpu-int4", "cpu-int8"])

    def work(number: int) -> None:
        offer = Offer(f"worker-{number}", OFFER.fingerprint, OFFER.timed_fingerprint)
        shuffle = random.Random(number).shuffle
        while not is_over(database):
            found = waiting(database)
            shuffle(found)
            for step, _, _ in found:
                with database.write() as session:
                    held = steps.claim(session, step, offer)
                if held:
                    assert succeed(database, held, offer=offer)

    at_once([lambda number=number: work(number) for number in range(16)])  # type: ignore[misc]
    with database.read() as session:
        assert set(session.scalars(select(JobRow.state))) == {JobState.SUCCEEDED}
        runs = select(func.count()).select_from(AttemptRow).group_by(AttemptRow.step_id)
        assert set(session.scalars(runs)) == {1}
        ran = select(func.count()).select_from(StepRow).where(StepRow.reused_step_id.is_(None))
        assert session.scalar(ran) == session.scalar(select(func.count()).select_from(AttemptRow))


def test_cancels_rescues_and_dispatch_do_not_disturb_the_workers(database: Database) -> None:
    job_ids = submit_paths(database, *(f"/models/{number}" for number in range(6)), recipes=["cpu-int4", "cpu-int8"])
    with database.write() as session:
        workers.register(session, worker_facts(slots=8))
    stop = threading.Event()

    def work(number: int) -> None:
        offer = Offer(f"worker-{number}", OFFER.fingerprint, OFFER.timed_fingerprint)
        dice = random.Random(number)
        while not is_over(database):
            for step, _, _ in dice.sample(found := waiting(database), len(found)):
                with database.write() as session:
                    held = steps.claim(session, step, offer)
                if held:
                    end(held, offer, dice)
        stop.set()

    def end(held: Claim, offer: Offer, dice: random.Random) -> None:
        with database.write() as session:
            is_cancelled = held.step_id in cancelling.cancelled_steps(session, offer.worker_id)
        if is_cancelled:
            with database.write() as session:
                steps.cancel_running(session, held, Ending(AttemptOutcome.CANCELLED))
        elif dice.random() < 0.1:
            # It dies: its lease runs out.
            with database.write() as session:
                late = DatabaseNow() - 1
                session.execute(update(StepRow).where(StepRow.id == held.step_id).values(lease_expires_at=late))
        else:
            succeed(database, held, offer=offer)

    def cancel() -> None:
        for job in job_ids[::3]:
            with database.write() as session:
                cancelling.cancel_job(session, job)

    def schedule() -> None:
        fairness = Fairness()
        while not stop.wait(0.01):
            with database.write() as session:
                steps.rescue(session)
                # Retries need not wait here.
                late = select(StepRow.id).where(StepRow.state == StepState.QUEUED, StepRow.run_at > DatabaseNow())
                ids = session.scalars(late.with_for_update(skip_locked=True)).all()
                session.execute(update(StepRow).where(StepRow.id.in_(ids)).values(run_at=0.0))
            with database.write() as session:
                dispatching.next_signals(session, fairness, 1.0)

    at_once([*(lambda number=number: work(number) for number in range(6)), cancel, schedule])  # type: ignore[misc]
    with database.read() as session:
        rows = session.scalars(select(JobRow)).all()
        assert {row.state for row in rows} <= {JobState.SUCCEEDED, JobState.CANCELLED, JobState.FAILED}
        for row in rows:
            states = session.scalars(select(StepRow.state).where(StepRow.job_id == row.id)).all()
            assert jobs.job_state([StepState(state) for state in states]) == row.state
        unended = select(func.count()).where(AttemptRow.finished_at.is_(None))
        assert session.scalar(unended) == 0


def test_of_a_cancel_and_a_claim_at_the_same_moment_both_happen(database: Database) -> None:
    for number in range(10):
        (job,) = submit_paths(database, f"/models/{number}")

        def cancel(job: int = job) -> None:
            with database.write() as session:
                cancelling.cancel_job(session, job)

        at_once([cancel, lambda job=job: claim(database, job, StepKind.INGEST)])  # type: ignore[misc]
        row, step = job_of(database, job), step_of(database, job, StepKind.INGEST)
        assert row.cancel_requested
        assert (row.state, step.state) in [
            (JobState.CANCELLED, StepState.CANCELLED),
            (JobState.RUNNING, StepState.RUNNING),
        ]


def test_two_steps_of_one_key_that_are_claimed_at_once_run_once(database: Database) -> None:
    first, second = submit_paths(database, "/models/a", "/models/b")
    for job in (first, second):
        succeed(database, claimed(database, job, StepKind.INGEST))
    won = list[Claim]()

    def take(job: int, offer: Offer) -> None:
        if held := claim(database, job, StepKind.CONVERT, offer):
            won.append(held)

    at_once([lambda: take(first, OFFER), lambda: take(second, OTHER)])
    assert len(won) == 1


def test_two_submissions_with_one_key_at_once_are_one_batch(database: Database) -> None:
    found = list[list[int]]()

    manifest = parse_manifest({"checkpoints": [{"path": "/models/a"}]})

    def submit_it() -> None:
        found.append(list(submit(database, manifest, [Path("/")], idempotency_key="monday").job_ids))

    at_once([submit_it] * 4)
    assert len({tuple(ids) for ids in found}) == 1


def test_a_retry_waits_longer_each_time_and_not_all_wait_equally_long(database: Database) -> None:
    job_ids = submit_paths(database, *(f"/models/{number}" for number in range(8)))
    waits: dict[int, list[float]] = {}
    for attempt in range(1, jobs.MAX_ATTEMPTS):
        for job in job_ids:
            held = claimed(database, job, StepKind.INGEST)
            with database.write() as session:
                steps.fail(session, held, ERROR, may_retry=True)
                row = session.get_one(StepRow, held.step_id, populate_existing=True)
                waits.setdefault(attempt, []).append(row.run_at - (session.scalar(select(DatabaseNow())) or 0.0))
        with database.write() as session:
            session.execute(update(StepRow).where(StepRow.state == StepState.QUEUED).values(run_at=0.0))
    for attempt, found in waits.items():
        longest = jobs.RETRY_BASE_S * 2.0 ** (attempt - 1)
        assert all(longest / 2 - 1 < wait <= longest for wait in found)
        assert len({round(wait, 2) for wait in found}) > 1, "all would come back at the same moment"


@pytest.mark.parametrize("last", [StepKind.INGEST, StepKind.PACKAGE])
def test_a_step_that_dies_takes_its_job_and_nothing_else(database: Database, last: StepKind) -> None:
    (doomed,) = submit_paths(database, "/models/a")
    for kind in DEFAULT_STEPS[: DEFAULT_STEPS.index(last)]:
        succeed(database, claimed(database, doomed, kind))
    for _ in range(jobs.MAX_ATTEMPTS):
        held = claimed(database, doomed, last)
        with database.write() as session:
            steps.fail(session, held, ERROR, may_retry=True)
            session.execute(update(StepRow).where(StepRow.state == StepState.QUEUED).values(run_at=0.0))
    assert step_of(database, doomed, last).state == StepState.DEAD
    row = job_of(database, doomed)
    assert (row.state, row.error_class, row.error_message) == (JobState.FAILED, "RuntimeCrashed", f"{last}: signal 9")
    assert claim(database, doomed, last) is None
    (other,) = submit_paths(database, "/models/b")
    for kind in DEFAULT_STEPS:
        # What the dead job had finished is remembered.
        if step_of(database, other, kind).state == StepState.QUEUED:
            succeed(database, claimed(database, other, kind))
    assert job_of(database, other).state == JobState.SUCCEEDED


def test_a_claim_and_the_result_of_its_twin_do_not_wait_for_each_other(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.engine.dialect.name == "sqlite":
        pytest.skip("the one writer holds everything")
    first, second = submit_paths(database, "/models/1", recipes=["cpu-int4", "cpu-int8"])
    twin = StepId(step_of(database, second, StepKind.INGEST).id)
    has_looked, may_claim = threading.Event(), threading.Event()
    claims: list[Claim | None] = []

    def claim_twin() -> None:
        # It looked before the other was claimed, and writes after that one's result: few microseconds, made long.
        with database.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            session = Session(connection)
            session.execute(select(StepRow.id)).all()
            has_looked.set()
            assert may_claim.wait(WITHIN_S)
            claims.append(steps.claim(session, twin, OTHER))

    claiming = threading.Thread(target=claim_twin)
    claiming.start()
    assert has_looked.wait(WITHIN_S)
    held = claimed(database, first, StepKind.INGEST)
    end_attempt = steps._end_attempt

    def end_while_the_twin_is_claimed(*args: object) -> None:
        may_claim.set()
        claiming.join(WITHIN_S)
        assert not claiming.is_alive(), "the claim waits for this result, which would wait for the claim"
        end_attempt(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(steps, "_end_attempt", end_while_the_twin_is_claimed)
    assert succeed(database, held)

    assert claims == [None]
    assert step_of(database, second, StepKind.INGEST).state == StepState.SUCCEEDED
