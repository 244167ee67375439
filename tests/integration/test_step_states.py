"""Claim, heartbeat, finish, retry, cancel and rescue on a real database."""

import threading
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select, update

from olivepress import jobs
from olivepress.database import cancelling, dispatching, steps, workers
from olivepress.database.sessions import Database, DatabaseNow
from olivepress.database.steps import Claim, Ending
from olivepress.database.tables import AttemptRow, RememberedRow, StepRow
from olivepress.database.unblocking import Offer, job_facts
from olivepress.jobs import AttemptOutcome, JobState, StepKind, StepState
from olivepress.manifest import parse_manifest
from olivepress.placement import Fairness
from olivepress.steps import StepResult, spec_of
from olivepress.submission import submit
from tests.integration.database_cases import (
    OFFER,
    OTHER,
    RESULTS,
    claim,
    claimed,
    job_of,
    on_both_databases,
    run_until,
    step_of,
    submit_paths,
    succeed,
    worker_facts,
)

pytestmark = on_both_databases
ERROR = Ending(AttemptOutcome.FAILED, error_class="BadCheckpoint", error_message="it is no checkpoint")


def let_the_lease_run_out(database: Database, held: Claim) -> None:
    with database.write() as session:
        late = DatabaseNow() - 1
        session.execute(update(StepRow).where(StepRow.id == held.step_id).values(lease_expires_at=late))


def test_a_step_is_claimed_by_one_worker_only(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    assert claim(database, job, StepKind.INGEST) is not None
    assert claim(database, job, StepKind.INGEST, OTHER) is None
    assert job_of(database, job).state == JobState.RUNNING


def test_of_many_workers_that_claim_at_once_one_wins(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    start, won = threading.Barrier(8), list[Claim]()

    def try_it() -> None:
        start.wait()
        if held := claim(database, job, StepKind.INGEST):
            won.append(held)

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_finished_step_queues_the_next_one_with_its_key(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    succeed(database, claimed(database, job, StepKind.INGEST))
    convert = step_of(database, job, StepKind.CONVERT)
    assert convert.state == StepState.QUEUED
    assert convert.fingerprint == OFFER.fingerprint
    assert len(convert.key or "") == 64


def test_a_job_whose_steps_all_succeed_has_succeeded(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    run_until(database, job, StepKind.PUBLISH)
    assert job_of(database, job).state == JobState.SUCCEEDED
    assert job_of(database, job).finished_at is not None


def test_a_worker_of_another_toolchain_does_not_get_the_step(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    succeed(database, claimed(database, job, StepKind.INGEST))
    stranger = Offer("worker-3", "another toolchain", "another on hardware")
    assert claim(database, job, StepKind.CONVERT, stranger) is None


def test_a_permanent_error_fails_the_job_at_once_with_its_message(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    held = claimed(database, job, StepKind.INGEST)
    with database.write() as session:
        assert steps.fail(session, held, ERROR, may_retry=False)
    row = job_of(database, job)
    assert row.state == JobState.FAILED
    assert row.error_message == "ingest: it is no checkpoint"
    assert step_of(database, job, StepKind.PUBLISH).state == StepState.CANCELLED


def test_the_rest_of_the_batch_goes_on_when_one_job_fails(database: Database) -> None:
    bad, good = submit_paths(database, "/models/a", "/models/b")
    held = claimed(database, bad, StepKind.INGEST)
    with database.write() as session:
        steps.fail(session, held, ERROR, may_retry=False)
    run_until(database, good, StepKind.PUBLISH)
    assert job_of(database, good).state == JobState.SUCCEEDED


def test_a_transient_error_is_tried_again_later_and_dies_after_the_last_attempt(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    for attempt in range(1, jobs.MAX_ATTEMPTS + 1):
        held = claimed(database, job, StepKind.INGEST)
        assert held.attempt == attempt
        with database.write() as session:
            steps.fail(session, held, ERROR, may_retry=True)
        if attempt < jobs.MAX_ATTEMPTS:
            assert step_of(database, job, StepKind.INGEST).state == StepState.QUEUED
            assert claim(database, job, StepKind.INGEST) is None, "it must wait before the next attempt"
            with database.write() as session:
                session.execute(update(StepRow).values(run_at=0.0))
    assert step_of(database, job, StepKind.INGEST).state == StepState.DEAD
    assert job_of(database, job).state == JobState.FAILED
    with database.read() as session:
        assert len(session.scalars(select(AttemptRow)).all()) == jobs.MAX_ATTEMPTS


def test_a_lost_attempt_returns_its_step_to_the_queue_and_its_late_result_is_discarded(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    lost = claimed(database, job, StepKind.INGEST)
    let_the_lease_run_out(database, lost)
    with database.write() as session:
        assert steps.rescue(session) == [lost.step_id]
        session.execute(update(StepRow).values(run_at=0.0))
    again = claimed(database, job, StepKind.INGEST, OTHER)
    assert succeed(database, lost) is False
    with database.write() as session:
        assert steps.heartbeat(session, lost, None, None) is False
        assert steps.heartbeat(session, again, "hashing", 0.5) is True
    assert step_of(database, job, StepKind.INGEST).state == StepState.RUNNING
    assert succeed(database, again, offer=OTHER) is True


def test_a_heartbeat_keeps_the_step_from_being_rescued(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    held = claimed(database, job, StepKind.INGEST)
    let_the_lease_run_out(database, held)
    with database.write() as session:
        assert steps.heartbeat(session, held, "hashing", 0.5)
        assert steps.rescue(session) == []


def test_a_step_that_is_handed_back_runs_at_once_and_its_attempt_does_not_count(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    held = claimed(database, job, StepKind.INGEST)
    with database.write() as session:
        steps.hand_back(session, held, Ending(AttemptOutcome.SHUTDOWN))
    again = claimed(database, job, StepKind.INGEST, OTHER)
    assert again.attempt == 1
    assert again.fence == held.fence + 1


def test_a_cancelled_job_ends_its_waiting_steps_now_and_its_running_one_by_its_worker(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    held = claimed(database, job, StepKind.INGEST)
    with database.write() as session:
        cancelling.cancel_job(session, job)
    assert job_of(database, job).state == JobState.RUNNING
    with database.write() as session:
        assert cancelling.cancelled_steps(session, OFFER.worker_id) == {held.step_id}
        steps.cancel_running(session, held, Ending(AttemptOutcome.CANCELLED))
    assert job_of(database, job).state == JobState.CANCELLED


def test_a_remembered_key_gives_its_result_without_running_again(database: Database) -> None:
    (first,) = submit_paths(database, "/models/a")
    run_until(database, first, StepKind.PUBLISH)
    (second,) = submit_paths(database, "/models/a")
    succeed(database, claimed(database, second, StepKind.INGEST))
    for kind in (StepKind.CONVERT, StepKind.PACKAGE, StepKind.VALIDATE):
        row = step_of(database, second, kind)
        assert row.state == StepState.SUCCEEDED
        assert row.reused_step_id == step_of(database, first, kind).id
        assert row.artifact_digest == RESULTS[kind].artifact_digest
    assert step_of(database, second, StepKind.PUBLISH).state == StepState.QUEUED


def test_a_remembered_key_whose_artifact_is_gone_is_run_again(database: Database) -> None:
    (first,) = submit_paths(database, "/models/a")
    run_until(database, first, StepKind.PUBLISH)
    (second,) = submit_paths(database, "/models/a")
    succeed(database, claimed(database, second, StepKind.INGEST), has_artifact=lambda digest: False)
    assert step_of(database, second, StepKind.CONVERT).state == StepState.QUEUED


def test_fresh_validates_anew_and_reuses_the_rest(database: Database) -> None:
    (first,) = submit_paths(database, "/models/a")
    run_until(database, first, StepKind.PUBLISH)
    (second,) = submit_paths(database, "/models/a", fresh=True)
    succeed(database, claimed(database, second, StepKind.INGEST))
    assert step_of(database, second, StepKind.PACKAGE).state == StepState.SUCCEEDED
    assert step_of(database, second, StepKind.VALIDATE).state == StepState.QUEUED


def test_of_two_jobs_with_one_key_one_runs_and_the_other_gets_its_result(database: Database) -> None:
    first, second = submit_paths(database, "/models/a", "/models/b")
    for job in (first, second):
        succeed(database, claimed(database, job, StepKind.INGEST))
    held = claimed(database, first, StepKind.CONVERT)
    assert claim(database, second, StepKind.CONVERT, OTHER) is None
    succeed(database, held)
    twin = step_of(database, second, StepKind.CONVERT)
    assert twin.state == StepState.SUCCEEDED
    assert twin.reused_step_id == held.step_id
    assert step_of(database, second, StepKind.PACKAGE).state == StepState.QUEUED


def test_cancelling_one_job_does_not_stop_the_work_of_its_twin(database: Database) -> None:
    first, second = submit_paths(database, "/models/a", "/models/b")
    for job in (first, second):
        succeed(database, claimed(database, job, StepKind.INGEST))
    held = claimed(database, first, StepKind.CONVERT)
    with database.write() as session:
        cancelling.cancel_job(session, second)
    assert succeed(database, held)
    assert job_of(database, second).state == JobState.CANCELLED
    assert step_of(database, second, StepKind.CONVERT).state == StepState.CANCELLED


def test_two_recipes_of_one_checkpoint_read_it_once(database: Database) -> None:
    small, large = submit_paths(database, "/models/a", recipes=["cpu-int4", "cpu-int8"])
    held = claimed(database, small, StepKind.INGEST)
    assert claim(database, large, StepKind.INGEST, OTHER) is None
    succeed(database, held)
    assert step_of(database, large, StepKind.INGEST).state == StepState.SUCCEEDED
    assert step_of(database, large, StepKind.CONVERT).state == StepState.QUEUED


def test_a_failed_gate_fails_the_job_and_publishes_nothing(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    run_until(database, job, StepKind.REFERENCE)
    gate = {"name": "min_prompts_passed", "limit": 0.8, "figure": 0.5, "verdict": "failed", "note": "3 of 6"}
    verdict = StepResult({"verdict": "failed", "report": {"gates": [gate]}})
    succeed(database, claimed(database, job, StepKind.VALIDATE), verdict)
    row = job_of(database, job)
    assert row.state == JobState.FAILED
    assert row.error_message == "validate: gate failed: min_prompts_passed is 0.5, the limit 0.8 (3 of 6)"
    assert step_of(database, job, StepKind.VALIDATE).state == StepState.SUCCEEDED
    assert step_of(database, job, StepKind.PUBLISH).state == StepState.CANCELLED


def test_a_result_is_remembered_once(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    run_until(database, job, StepKind.PUBLISH)
    with database.read() as session:
        kinds = sorted(session.scalars(select(RememberedRow.kind)))
    assert kinds == ["convert", "package", "reference", "validate"]


def register(database: Database, slots: int) -> None:
    with database.write() as session:
        workers.register(session, worker_facts(slots))


def signalled(database: Database, again_after_s: float = 60) -> list[dispatching.Signal]:
    with database.write() as session:
        return dispatching.next_signals(session, Fairness(), again_after_s)


def test_only_a_window_of_twice_the_slots_is_signalled(database: Database) -> None:
    submit_paths(database, *(f"/models/{number}" for number in range(20)))
    assert signalled(database) == []
    register(database, slots=2)
    assert len(signalled(database)) == 4
    assert signalled(database) == []


def test_a_signal_that_was_lost_is_sent_again(database: Database) -> None:
    register(database, slots=1)
    submit_paths(database, "/models/a")
    first = signalled(database)
    assert signalled(database) == []
    assert signalled(database, again_after_s=-1) == first


def test_higher_priority_goes_first_and_started_jobs_before_new_ones(database: Database) -> None:
    register(database, slots=1)
    (started,) = submit_paths(database, "/models/a")
    submit_paths(database, "/models/b")
    succeed(database, claimed(database, started, StepKind.INGEST))
    (urgent,) = submit_paths(database, "/models/c", priority=9)
    order = [signal.step_id for signal in signalled(database)]
    assert order == [
        step_of(database, urgent, StepKind.INGEST).id,
        step_of(database, started, StepKind.CONVERT).id,
    ]


def test_a_step_whose_twin_runs_is_not_signalled(database: Database) -> None:
    register(database, slots=4)
    small, _ = submit_paths(database, "/models/a", recipes=["cpu-int4", "cpu-int8"])
    assert len(signalled(database)) == 1
    claimed(database, small, StepKind.INGEST)
    assert signalled(database) == []


def test_one_scheduler_leads_until_its_lease_runs_out(database: Database) -> None:
    def lead(holder: str, lease_s: float = 10) -> bool:
        with database.write() as session:
            return workers.take_lease(session, "scheduler", holder, lease_s)

    take: Callable[..., bool] = lead
    assert take("one")
    assert not take("two")
    assert take("one", lease_s=-1)
    assert take("two")
    assert not take("one")


def test_an_attempt_is_ended_whatever_its_log_holds(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    held = claimed(database, job, StepKind.INGEST)
    ending = Ending(AttemptOutcome.FAILED, error_class="E", error_message="a\x00b", log_tail="half \ud83d of a pair")
    with database.write() as session:
        assert steps.fail(session, held, ending, may_retry=False)
    assert job_of(database, job).error_message == "ingest: a\ufffdb"


def test_a_choice_between_two_chat_templates_reaches_ingest_and_is_not_shared_with_jobs_that_made_none(
    database: Database,
) -> None:
    entries = [{"path": "/models/a", "name": "one", "chat_template": "tokenizer_config.json"}]
    entries += [{"path": "/models/a", "name": "two"}]
    with_choice, without = submit(database, parse_manifest({"checkpoints": entries}), [Path("/")]).job_ids
    with database.read() as session:
        told = [spec_of(StepKind.INGEST, job_facts(session, job), {}) for job in (with_choice, without)]
    assert [spec.get("chat_template") for spec in told] == ["tokenizer_config.json", None]
    assert step_of(database, with_choice, StepKind.INGEST).key != step_of(database, without, StepKind.INGEST).key


def test_a_text_that_no_database_or_answer_can_hold_is_made_one_that_can(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    run_until(database, job, StepKind.REFERENCE)
    odd = {"verdict": "passed", "report": {"gates": [], "answers": [{"half \ud83d": "nul \x00, half \ud83d"}]}}
    succeed(database, claimed(database, job, StepKind.VALIDATE), StepResult(odd))
    result = step_of(database, job, StepKind.VALIDATE).result
    assert result is not None
    assert result["report"]["answers"] == [{"half \ufffd": "nul \ufffd, half \ufffd"}]
