"""Where steps are sent, what becomes of those that fit nowhere, and what is learned of their cost."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update

from olivepress.database import cancelling, costs, dispatching, signing_keys, steps, stranded, views, workers
from olivepress.database.sessions import Database
from olivepress.database.steps import Ending
from olivepress.database.tables import AttemptRow, StepRow, WorkerRow
from olivepress.database.unblocking import Offer
from olivepress.evidence.signing import PublicKey
from olivepress.jobs import AttemptOutcome, JobState, StepKind, StepState
from olivepress.placement import GIB, Fairness
from olivepress.recipes.recipe import recipe_named
from olivepress.step_cost import cost_family
from olivepress.steps import StepResult
from tests.integration.database_cases import (
    INGESTED,
    OFFER,
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
SIZES = {
    "source_bytes": 988_000_000,
    "parameters": 494_000_000,
    "embedding_parameters": 136_000_000,
    "largest_tensor_parameters": 136_000_000,
    "tied_embeddings": True,
    "is_adapter": False,
}
KEY = PublicKey(bytes(range(32)))
OUT_OF_MEMORY = Ending(
    AttemptOutcome.OUT_OF_MEMORY, error_class="OutOfMemory", error_message="it used 4 GiB", peak_rss_bytes=4 * GIB
)


def start(database: Database, offer: Offer, slots: int = 1) -> Offer:
    """A living worker that offers this."""
    facts = replace(
        worker_facts(slots),
        id=offer.worker_id,
        pools=list(offer.pools),
        memory_bytes=offer.allowance_bytes * slots,
        fingerprint=offer.fingerprint,
        timed_fingerprint=offer.timed_fingerprint,
        signing_key=KEY.id if offer.signs else None,
    )
    with database.write() as session:
        workers.register(session, facts)
    return offer


SMALL = replace(OFFER, worker_id="small", allowance_bytes=2 * GIB)
LARGE = replace(OFFER, worker_id="large", allowance_bytes=16 * GIB, pools=("default", "large"))
SIGNER = replace(SMALL, worker_id="signer", signs=True)


def sent(database: Database) -> dict[int, str]:
    with database.write() as session:
        signals = dispatching.next_signals(session, Fairness(), 15)
    return {signal.step_id: signal.worker_id for signal in signals}


def look(database: Database, fail_after_s: float = 3600) -> list[int]:
    with database.write() as session:
        return stranded.look_after_stranded(session, lambda digest: True, fail_after_s)


def with_large_checkpoint(database: Database, offer: Offer, **manifest: Any) -> int:
    """A job whose ingest has found a model of half a billion parameters; its convert waits."""
    (job,) = submit_paths(database, "/models/a", **manifest)
    held = claimed(database, job, StepKind.INGEST, offer)
    succeed(database, held, StepResult(INGESTED | {"sizes": SIZES}), offer)
    return job


def test_a_conversion_is_sent_to_the_worker_that_has_the_memory_for_it(database: Database) -> None:
    start(database, SMALL)
    start(database, LARGE)
    job = with_large_checkpoint(database, LARGE)
    convert = step_of(database, job, StepKind.CONVERT)
    assert 3 * GIB < convert.memory_bytes < 6 * GIB
    assert convert.predicted_s is not None
    assert sent(database) == {convert.id: "large"}


def test_a_worker_cannot_claim_what_does_not_fit_it(database: Database) -> None:
    start(database, LARGE)
    job = with_large_checkpoint(database, LARGE)
    assert claim(database, job, StepKind.CONVERT, SMALL) is None
    assert claim(database, job, StepKind.CONVERT, LARGE) is not None


def test_a_job_that_names_a_pool_runs_there_only(database: Database) -> None:
    start(database, SMALL)
    (job,) = submit_paths(database, "/models/a", pool="large")
    assert sent(database) == {}
    assert claim(database, job, StepKind.INGEST, SMALL) is None
    start(database, LARGE)
    assert set(sent(database).values()) == {"large"}


def test_a_second_team_is_served_beside_the_batch_of_the_first(database: Database) -> None:
    start(database, SMALL, slots=2)
    submit_paths(database, *(f"/models/{number}" for number in range(50)), team="first")
    for step_id in list(sent(database))[:2]:
        with database.write() as session:
            assert steps.claim(session, step_id, SMALL)  # type: ignore[arg-type]
    (late,) = submit_paths(database, "/models/z", team="second")
    with database.write() as session:
        # One of the two that wait at the worker is taken: there is room for one more.
        waiting = select(StepRow.id).where(StepRow.state == StepState.QUEUED, StepRow.signaled_at.is_not(None)).limit(1)
        assert steps.claim(session, session.scalars(waiting).one(), replace(SMALL, worker_id="other"))  # type: ignore[arg-type]
    assert list(sent(database)) == [step_of(database, late, StepKind.INGEST).id]


def test_a_step_that_waits_at_a_worker_that_stopped_is_sent_to_another_at_once(database: Database) -> None:
    start(database, SMALL)
    submit_paths(database, "/models/a")
    (step_id,) = sent(database)
    start(database, LARGE)
    assert sent(database) == {}
    with database.write() as session:
        workers.stopped(session, SMALL.worker_id)
    assert sent(database) == {step_id: "large"}


def test_a_step_that_fits_no_worker_says_what_it_needs_and_stops_saying_so_when_one_comes(database: Database) -> None:
    start(database, SMALL)
    job = with_large_checkpoint(database, SMALL)
    assert look(database) == []
    with database.read() as session:
        view = views.job(session, job)
    (waits_for,) = [step["waits_for"] for step in view["steps"] if step["kind"] == "convert"]
    assert "GiB of memory and the largest worker gives a step 2.0 GiB; start one with more memory" in waits_for
    start(database, LARGE)
    look(database)
    assert step_of(database, job, StepKind.CONVERT).unplaceable is None
    assert list(sent(database).values()) == ["large"]


def test_a_step_that_fits_no_worker_for_too_long_fails_with_the_reason(database: Database) -> None:
    start(database, SMALL)
    job = with_large_checkpoint(database, SMALL)
    look(database)
    with database.write() as session:
        session.execute(update(StepRow).values(unplaceable_since=StepRow.unplaceable_since - 60))
    assert look(database, fail_after_s=61) == []
    assert look(database, fail_after_s=59) == [step_of(database, job, StepKind.CONVERT).id]
    row = job_of(database, job)
    assert (row.state, row.error_class) == (JobState.FAILED, "NoRoom")
    assert "no worker could take this step for 59 s: it needs" in (row.error_message or "")
    assert step_of(database, job, StepKind.PUBLISH).state == StepState.CANCELLED


def test_without_any_worker_no_step_is_blamed_and_people_are_told(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    assert look(database, fail_after_s=-1) == []
    assert step_of(database, job, StepKind.INGEST).unplaceable is None
    with database.read() as session:
        assert views.batch_summary(session, 1)["waits_for"].startswith("no worker is running; start one")


def test_a_step_keyed_by_a_toolchain_that_is_gone_gets_the_key_of_one_that_is_there(database: Database) -> None:
    start(database, LARGE)
    job = with_large_checkpoint(database, LARGE)
    before = step_of(database, job, StepKind.CONVERT)
    newer = replace(LARGE, worker_id="newer", fingerprint="toolchain-2", timed_fingerprint="toolchain-2-on-hardware")
    with database.write() as session:
        workers.stopped(session, LARGE.worker_id)
    start(database, newer)
    assert claim(database, job, StepKind.CONVERT, newer) is None
    look(database)
    after = step_of(database, job, StepKind.CONVERT)
    assert (after.state, after.fingerprint) == (StepState.QUEUED, "toolchain-2")
    assert after.key != before.key
    assert claim(database, job, StepKind.CONVERT, newer) is not None


def test_a_new_key_whose_result_is_known_needs_no_run(database: Database) -> None:
    newer = replace(LARGE, worker_id="newer", fingerprint="toolchain-2", timed_fingerprint="toolchain-2-on-hardware")
    start(database, LARGE)
    job = with_large_checkpoint(database, LARGE)
    with database.write() as session:
        workers.stopped(session, LARGE.worker_id)
    start(database, newer)
    other = with_large_checkpoint(database, newer)
    succeed(database, claimed(database, other, StepKind.CONVERT, newer), RESULTS[StepKind.CONVERT], newer)
    look(database)
    assert step_of(database, job, StepKind.CONVERT).state == StepState.SUCCEEDED
    assert step_of(database, job, StepKind.PACKAGE).state == StepState.QUEUED


def test_a_step_that_ran_out_of_memory_is_tried_once_more_by_a_larger_worker(database: Database) -> None:
    middle = replace(OFFER, worker_id="middle", allowance_bytes=4 * GIB)
    start(database, middle)
    start(database, LARGE)
    (job,) = submit_paths(database, "/models/a")
    with database.write() as session:
        held = steps.claim(session, step_of(database, job, StepKind.INGEST).id, middle)  # type: ignore[arg-type]
        assert held is not None
        assert steps.fail(session, held, OUT_OF_MEMORY, may_retry=True)
        session.execute(update(StepRow).values(run_at=0))
    assert step_of(database, job, StepKind.INGEST).state == StepState.QUEUED
    assert claim(database, job, StepKind.INGEST, middle) is None
    assert list(sent(database).values()) == ["large"]
    again = claimed(database, job, StepKind.INGEST, LARGE)
    with database.write() as session:
        steps.fail(session, again, OUT_OF_MEMORY, may_retry=True)
    assert step_of(database, job, StepKind.INGEST).state == StepState.FAILED
    with database.read() as session:
        assert set(session.scalars(select(AttemptRow.outcome))) == {AttemptOutcome.OUT_OF_MEMORY}


def test_out_of_memory_without_a_larger_worker_fails_and_says_so(database: Database) -> None:
    middle = start(database, replace(OFFER, worker_id="middle", allowance_bytes=4 * GIB))
    (job,) = submit_paths(database, "/models/a")
    held = claimed(database, job, StepKind.INGEST, middle)
    with database.write() as session:
        steps.fail(session, held, OUT_OF_MEMORY, may_retry=True)
    row = job_of(database, job)
    assert row.state == JobState.FAILED
    assert row.error_message == "ingest: it used 4 GiB; no worker gives a step more than 4.0 GiB"


def test_what_an_attempt_used_corrects_the_next_prediction_of_its_family(database: Database) -> None:
    start(database, LARGE)
    job = with_large_checkpoint(database, LARGE)
    before = step_of(database, job, StepKind.CONVERT)
    used = Ending(AttemptOutcome.SUCCEEDED, peak_rss_bytes=2 * before.memory_bytes)
    held = claimed(database, job, StepKind.CONVERT, LARGE)
    with database.write() as session:
        steps.succeed(session, held, RESULTS[StepKind.CONVERT], LARGE, lambda digest: True, ending=used)
    other = with_large_checkpoint(database, LARGE, fresh=True)
    after = step_of(database, other, StepKind.CONVERT)
    assert after.memory_bytes == pytest.approx(2 * before.memory_bytes, rel=0.01)
    with database.read() as session:
        family = cost_family("qwen2", recipe_named("cpu-int4"))
        assert costs.learned(session)[StepKind.CONVERT, family].attempts == 1


def test_cancelling_a_batch_ends_what_waits_and_flags_what_runs(database: Database) -> None:
    done, running, waiting = submit_paths(database, "/models/a", "/models/b", "/models/c")
    with database.write() as session:
        session.execute(update(StepRow).where(StepRow.job_id == done).values(state=StepState.SUCCEEDED))
        steps.refresh_job(session, done)
    held = claimed(database, running, StepKind.INGEST)
    with database.write() as session:
        cancelling.cancel_batch(session, 1)
        assert cancelling.cancelled_steps(session, OFFER.worker_id) == {held.step_id}
    states = [job_of(database, job).state for job in (done, running, waiting)]
    assert states == [JobState.SUCCEEDED, JobState.RUNNING, JobState.CANCELLED]
    assert step_of(database, running, StepKind.CONVERT).state == StepState.CANCELLED
    assert job_of(database, waiting).finished_at is not None


def test_a_worker_that_the_database_forgot_is_told_so_and_one_taken_for_stopped_lives_on(database: Database) -> None:
    start(database, SMALL)
    with database.write() as session:
        assert not workers.seen(session, "forgotten", 1)
        workers.stopped(session, SMALL.worker_id)
    with database.write() as session:
        assert workers.seen(session, SMALL.worker_id, 5)
        assert [(row.id, row.disk_free_bytes) for row in workers.alive(session)] == [(SMALL.worker_id, 5)]


def test_a_worker_that_missed_its_reports_is_sent_nothing_although_it_still_counts_as_alive(database: Database) -> None:
    start(database, SMALL)
    submit_paths(database, "/models/a")
    with database.write() as session:
        session.execute(update(WorkerRow).values(seen_at=WorkerRow.seen_at - workers.SENT_TO_FOR_S - 1))
        assert workers.alive(session)
    assert sent(database) == {}


def ready_to_publish(database: Database, **manifest: Any) -> int:
    """A job of which only publish is left."""
    (job,) = submit_paths(database, "/models/a", **manifest)
    run_until(database, job, StepKind.VALIDATE)
    return job


def sign(database: Database) -> None:
    """From now on the stack has a key."""
    with database.write() as session:
        signing_keys.note(session, KEY)


def test_once_the_stack_signs_only_a_worker_with_the_key_is_sent_a_publication_or_can_claim_it(
    database: Database,
) -> None:
    start(database, SMALL)
    job = ready_to_publish(database)
    sign(database)
    assert sent(database) == {}
    assert claim(database, job, StepKind.PUBLISH, SMALL) is None
    start(database, SIGNER)
    assert sent(database) == {step_of(database, job, StepKind.PUBLISH).id: "signer"}
    assert claim(database, job, StepKind.PUBLISH, SIGNER) is not None


def test_while_the_stack_has_no_key_every_worker_publishes(database: Database) -> None:
    start(database, SMALL)
    job = ready_to_publish(database)
    assert list(sent(database).values()) == ["small"]
    assert claim(database, job, StepKind.PUBLISH, SMALL) is not None


def test_a_worker_without_the_key_runs_every_other_step(database: Database) -> None:
    start(database, SMALL)
    sign(database)
    (job,) = submit_paths(database, "/models/a")
    assert list(sent(database).values()) == ["small"]
    assert claim(database, job, StepKind.INGEST, SMALL) is not None


def test_a_publication_without_a_worker_that_signs_says_so_and_waits_as_long_as_it_takes(database: Database) -> None:
    start(database, SMALL)
    job = ready_to_publish(database)
    sign(database)
    look(database)
    with database.write() as session:
        session.execute(update(StepRow).values(unplaceable_since=StepRow.unplaceable_since - 10_000))
        view = views.job(session, job)
    (waits_for,) = [step["waits_for"] for step in view["steps"] if step["kind"] == "publish"]
    assert waits_for.startswith("no running worker has the signing key"), waits_for
    assert look(database, fail_after_s=60) == []
    assert job_of(database, job).state == JobState.RUNNING
    start(database, SIGNER)
    look(database)
    assert step_of(database, job, StepKind.PUBLISH).unplaceable is None
    assert list(sent(database).values()) == ["signer"]


def test_the_worker_with_the_key_publishes_for_pools_that_it_does_not_offer(database: Database) -> None:
    start(database, SIGNER)
    start(database, LARGE)
    (job,) = submit_paths(database, "/models/a", pool="large")
    for kind in (StepKind.INGEST, StepKind.CONVERT, StepKind.PACKAGE, StepKind.REFERENCE, StepKind.VALIDATE):
        assert claim(database, job, kind, SIGNER) is None, "its pool is another one"
        succeed(database, claimed(database, job, kind, LARGE), offer=LARGE)
    sign(database)
    assert list(sent(database).values()) == ["signer"]


def test_a_worker_whose_key_cannot_be_used_any_more_is_sent_no_publication(database: Database) -> None:
    start(database, SIGNER)
    ready_to_publish(database)
    sign(database)
    with database.write() as session:
        assert workers.seen(session, SIGNER.worker_id, 2**50, signing_key=None)
    assert sent(database) == {}


PUBLISHER = replace(SIGNER, worker_id="publisher", allowance_bytes=0)


def test_what_only_publishes_is_sent_nothing_else(database: Database) -> None:
    start(database, PUBLISHER)
    sign(database)
    submit_paths(database, "/models/b")
    assert sent(database) == {}
    start(database, SMALL)
    job = ready_to_publish(database)
    found = sent(database)
    assert found[step_of(database, job, StepKind.PUBLISH).id] == "publisher"
    assert set(found.values()) == {"publisher", "small"}


def test_beside_what_only_publishes_a_step_waits_for_a_worker_and_is_not_blamed(database: Database) -> None:
    start(database, PUBLISHER)
    (job,) = submit_paths(database, "/models/a")
    assert look(database, fail_after_s=-1) == []
    with database.read() as session:
        (waits_for, *_) = [step["waits_for"] for step in views.job(session, job)["steps"]]
        assert views.batch_summary(session, 1)["waits_for"] == waits_for
    assert waits_for == "no worker is running; start one: olivepress service worker"
