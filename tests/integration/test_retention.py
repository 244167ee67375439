"""What is too old goes from the database and the store; what a version, a job or a remembered result needs stays."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, update

from olivepress import retention
from olivepress.database import retention as rows
from olivepress.database import steps, workers
from olivepress.database.cancelling import cancel_job
from olivepress.database.retention import RowKind
from olivepress.database.sessions import Database, DatabaseNow
from olivepress.database.steps import Ending
from olivepress.database.tables import AttemptRow, RememberedRow, StepRow, VersionRow, WorkerRow
from olivepress.errors import TransientError
from olivepress.jobs import AttemptOutcome, StepKind
from olivepress.retention import Periods, StoreKind
from olivepress.settings import Settings
from olivepress.steps import StepResult
from tests.integration.database_cases import (
    INGESTED,
    OFFER,
    claimed,
    job_of,
    on_both_databases,
    step_of,
    submit_paths,
    succeed,
    worker_facts,
)
from tests.integration.press_cases import DAY_S, PERIODS, Press

pytestmark = on_both_databases


@pytest.fixture
def press(database: Database, tmp_path: Path) -> Press:
    return Press(database, tmp_path)


def try_three_times(database: Database, job_id: int, kind: StepKind) -> None:
    """Two attempts of a step fail and the third succeeds."""
    for number in (1, 2, 3):
        held = claimed(database, job_id, kind)
        if number == 3:
            assert succeed(database, held)
            return
        ending = Ending(AttemptOutcome.CRASHED, signal=9, log_tail=f"attempt {number}")
        with database.write() as session:
            assert steps.fail(session, held, ending, may_retry=True)
            session.execute(update(StepRow).where(StepRow.id == held.step_id).values(run_at=DatabaseNow() - 1))


class TestReferences:
    def test_both_artifacts_of_a_version_are_referenced_when_all_else_is_forgotten(self, press: Press) -> None:
        job = press.job("/models/a")
        press.age_rows(31)
        press.age_store()

        report = press.run()

        assert not press.store.has(press.digest(job, StepKind.CONVERT))
        assert press.store.has(press.digest(job, StepKind.PACKAGE))
        assert press.store.has(press.digest(job, StepKind.PUBLISH))
        assert report.amounts[StoreKind.ARTIFACTS].count == 1

    def test_what_the_source_of_a_version_said_stays_and_is_remembered_as_long_as_the_version(
        self, press: Press
    ) -> None:
        # given a version, and a job that got as far as the reference and published nothing
        job, other = press.job("/models/a"), press.job("/models/b", last=StepKind.REFERENCE)
        with press.database.write() as session:
            cancel_job(session, other)
        press.age_rows(1000)
        press.age_store()
        # when
        press.run()
        # then
        assert press.store.has(press.digest(job, StepKind.REFERENCE))
        assert not press.store.has(press.digest(other, StepKind.REFERENCE))
        with press.database.read() as session:
            assert session.scalars(select(RememberedRow.kind)).all() == [StepKind.REFERENCE]
        # when the version is deleted for good
        with press.database.write() as session:
            session.execute(update(VersionRow).values(deleted_at=1.0, files_until=2.0))
        press.job("/models/kept")
        press.age_rows(1000)
        press.age_store()
        press.run()
        # then
        assert not press.store.has(press.digest(job, StepKind.REFERENCE))

    def test_artifacts_of_an_unfinished_job_stay_however_old(self, press: Press) -> None:
        press.job("/models/published")
        job = press.job("/models/a", last=StepKind.PACKAGE)
        press.age_rows(1000)
        press.age_store()

        press.run()

        assert job_of(press.database, job).finished_at is None
        assert press.store.has(press.digest(job, StepKind.CONVERT))
        assert press.store.has(press.digest(job, StepKind.PACKAGE))

    @pytest.mark.parametrize(("days", "stays"), [(29, True), (31, False)])
    def test_what_a_cancelled_job_made_stays_as_long_as_it_is_remembered(
        self, press: Press, days: int, stays: bool
    ) -> None:
        press.job("/models/published")
        job = press.job("/models/a", last=StepKind.CONVERT)
        with press.database.write() as session:
            cancel_job(session, job)
        press.age_rows(days)
        press.age_store()

        press.run()

        assert press.store.has(press.digest(job, StepKind.CONVERT)) is stays

    def test_a_result_that_was_used_lately_is_not_forgotten(self, press: Press) -> None:
        # given a result of 40 days ago that another job was given 10 days ago
        press.job("/models/published")
        first = press.job("/models/a", last=StepKind.CONVERT)
        with press.database.write() as session:
            cancel_job(session, first)
        press.age_rows(30)
        (second,) = submit_paths(press.database, "/models/a")
        succeed(
            press.database,
            claimed(press.database, second, StepKind.INGEST),
            StepResult(INGESTED | {"checkpoint_digest": "/models/a"}),
        )
        assert step_of(press.database, second, StepKind.CONVERT).reused_step_id is not None
        with press.database.write() as session:
            cancel_job(session, second)
        press.age_rows(10)
        press.age_store()
        # when
        press.run()
        # then
        assert press.store.has(press.digest(first, StepKind.CONVERT))

    def test_a_remembered_result_whose_artifact_was_collected_is_a_miss(self, press: Press) -> None:
        # given a store that forgets faster than the database, as one does that was restored from an older copy
        press.job("/models/published")
        first = press.job("/models/a", last=StepKind.CONVERT)
        digest = press.digest(first, StepKind.CONVERT)
        press.store.places.manifest(digest).unlink()
        # when
        (second,) = submit_paths(press.database, "/models/a")
        ingested = StepResult(INGESTED | {"checkpoint_digest": "/models/a"})
        succeed(
            press.database,
            claimed(press.database, second, StepKind.INGEST),
            ingested,
            has_artifact=press.store.has,
        )
        # then
        assert step_of(press.database, second, StepKind.CONVERT).reused_step_id is None

    def test_a_result_of_the_last_moment_is_safe_from_a_run_that_had_looked_before(self, press: Press) -> None:
        # given a result that is forgotten by a run, while another job is just being given it
        press.job("/models/published")
        job = press.job("/models/a", last=StepKind.CONVERT)
        with press.database.write() as session:
            cancel_job(session, job)
        press.age_rows(31)
        press.age_store()
        digest = press.digest(job, StepKind.CONVERT)
        # when the other job's transaction has asked the store, and commits only after the run
        assert press.store.has(digest)
        press.run()
        # then
        press.store.materialise(digest, press.root / "target")

    def test_a_database_that_knows_none_of_the_artifacts_costs_nothing(self, press: Press) -> None:
        orphan = press.put("orphan")
        press.age_store()

        report = press.run()

        assert report.problem is not None
        assert press.store.has(orphan)


class TestAttempts:
    def test_of_a_step_that_finished_long_ago_only_the_last_attempt_stays(self, press: Press) -> None:
        (job,) = submit_paths(press.database, "/models/a")
        try_three_times(press.database, job, StepKind.INGEST)
        assert press.rows(AttemptRow) == 3
        press.age_rows(91)

        report = press.run()

        with press.database.read() as session:
            (left,) = session.scalars(select(AttemptRow)).all()
        assert (left.number, left.outcome) == (3, AttemptOutcome.SUCCEEDED)
        amount = report.amounts[RowKind.ATTEMPTS]
        assert (amount.count, amount.size_bytes) == (2, 2 * len("attempt 1"))

    def test_attempts_of_a_step_that_finished_lately_stay(self, press: Press) -> None:
        (job,) = submit_paths(press.database, "/models/a")
        try_three_times(press.database, job, StepKind.INGEST)
        press.age_rows(89)

        press.run()

        assert press.rows(AttemptRow) == 3

    def test_attempts_of_a_step_that_is_not_over_stay_however_old(self, press: Press) -> None:
        (job,) = submit_paths(press.database, "/models/a")
        held = claimed(press.database, job, StepKind.INGEST)
        with press.database.write() as session:
            steps.fail(session, held, Ending(AttemptOutcome.CRASHED), may_retry=True)
            session.execute(update(StepRow).values(run_at=DatabaseNow() - 1))
        claimed(press.database, job, StepKind.INGEST)
        press.age_rows(1000)

        press.run()

        assert press.rows(AttemptRow) == 2

    def test_the_log_of_an_old_attempt_goes_only_where_it_succeeded(self, press: Press) -> None:
        (job,) = submit_paths(press.database, "/models/a")
        try_three_times(press.database, job, StepKind.INGEST)
        with press.database.write() as session:
            session.execute(update(AttemptRow).where(AttemptRow.number == 3).values(log_tail="all is well"))
        press.age_rows(31)

        report = press.run()

        with press.database.read() as session:
            logs = session.scalars(select(AttemptRow.log_tail).order_by(AttemptRow.number)).all()
        assert list(logs) == ["attempt 1", "attempt 2", None]
        assert report.amounts[RowKind.LOGS].size_bytes == len("all is well")

    def test_more_rows_than_one_transaction_takes_all_go(self, press: Press, monkeypatch: pytest.MonkeyPatch) -> None:
        (job,) = submit_paths(press.database, "/models/a")
        try_three_times(press.database, job, StepKind.INGEST)
        press.age_rows(91)
        monkeypatch.setattr(rows, "BATCH_ROWS", 1)
        turns: list[int] = []

        removed = rows.remove(press.database, RowKind.ATTEMPTS, 90 * DAY_S, lambda: turns.append(1))

        assert (removed.count, press.rows(AttemptRow), len(turns)) == (2, 1, 3)


class TestWorkers:
    def test_a_worker_that_is_gone_stays_while_an_attempt_names_it(self, press: Press) -> None:
        with press.database.write() as session:
            workers.register(session, worker_facts())
            workers.register(session, replace(worker_facts(), id="idle"))
        (job,) = submit_paths(press.database, "/models/a")
        claimed(press.database, job, StepKind.INGEST)
        press.age_rows(31)

        report = press.run()

        with press.database.read() as session:
            assert list(session.scalars(select(WorkerRow.id))) == [OFFER.worker_id]
        assert report.amounts[RowKind.WORKERS].count == 1

    def test_a_worker_that_was_seen_lately_stays(self, press: Press) -> None:
        with press.database.write() as session:
            workers.register(session, worker_facts())
        press.age_rows(29)

        press.run()

        assert press.rows(WorkerRow) == 1


class TestRuns:
    def full(self, press: Press) -> None:
        """Something of every kind that a run removes."""
        press.job("/models/published")
        (job,) = submit_paths(press.database, "/models/a")
        try_three_times(press.database, job, StepKind.INGEST)
        press.put("orphan")
        with press.database.write() as session:
            session.execute(update(AttemptRow).where(AttemptRow.number == 3).values(log_tail="log"))
            workers.register(session, replace(worker_facts(), id="idle"))
        left = press.store.places.tmp / "host-1-aa"
        left.write_bytes(b"begun")
        os.utime(left, (left.stat().st_mtime - DAY_S,) * 2)
        press.age_rows(91)
        press.age_store()

    def test_a_dry_run_names_what_the_next_run_removes_and_removes_nothing(self, press: Press) -> None:
        self.full(press)

        planned = retention.plan(press.database, press.store, PERIODS)
        again = retention.plan(press.database, press.store, PERIODS)
        done = press.run()

        assert planned.amounts == again.amounts
        trash = StoreKind.TRASH
        assert {kind: found for kind, found in planned.amounts.items() if kind is not trash} == {
            kind: found for kind, found in done.amounts.items() if kind is not trash
        }
        assert all(found.count for kind, found in done.amounts.items()), done.amounts
        # With nothing to wait for, what was taken out is gone in the same run.
        assert done.amounts[trash] == done.amounts[StoreKind.ARTIFACTS] + done.amounts[StoreKind.CHUNKS]
        assert all(not found.count for found in press.run().amounts.values())

    @pytest.mark.parametrize("period", ["remembered", "attempts", "logs", "workers", "unreferenced"])
    def test_a_period_of_zero_keeps_its_kind_and_no_other(self, press: Press, period: str) -> None:
        self.full(press)
        settings = Settings.model_validate({f"retention_{period}_days": 0, "retention_settle_s": 0})
        kept = set(StoreKind) if period == "unreferenced" else {RowKind(period)}

        report = press.run(Periods.of(settings))

        removed = {kind for kind, found in report.amounts.items() if found.count}
        assert removed == {*RowKind, *StoreKind} - kept
        shown = {item["kind"]: item["kept_for_s"] for item in report.to_dict()["kinds"]}
        assert {kind for kind, kept_for_s in shown.items() if kept_for_s is None} == kept

    def test_what_was_taken_out_waits_and_goes_with_a_later_run(self, press: Press) -> None:
        self.full(press)

        first = press.run(replace(PERIODS, settle_s=60))
        second = press.run(PERIODS)

        assert first.amounts[StoreKind.TRASH].count == 0
        assert first.waiting.count == second.amounts[StoreKind.TRASH].count > 0

    def test_a_second_run_at_the_same_time_is_refused_and_a_killed_one_blocks_for_its_lease_only(
        self, press: Press
    ) -> None:
        with press.database.write() as session:
            workers.take_lease(session, retention.LEASE, "another", 60)
        with pytest.raises(TransientError, match="runs already"):
            press.run()

        with press.database.write() as session:
            workers.take_lease(session, retention.LEASE, "another", -1)
        press.run()
        press.run()

    def test_a_run_that_is_told_to_stop_gives_its_turn_back(self, press: Press) -> None:
        self.full(press)

        with pytest.raises(TransientError, match="asked to stop"):
            retention.run(press.database, press.store, PERIODS, stop_at(3))

        assert press.run().amounts[StoreKind.ARTIFACTS].count


def stop_at(call: int) -> Callable[[], bool]:
    """A `must_stop` that says yes from the given call on."""
    calls = 0

    def must_stop() -> bool:
        nonlocal calls
        calls += 1
        return calls >= call

    return must_stop
