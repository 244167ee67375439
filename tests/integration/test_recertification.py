"""When the runtime is another one, versions with an alias are measured again, once, and what fails is flagged."""

import threading
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from olivepress.database.aliases import promote
from olivepress.database.cancelling import cancel_job
from olivepress.database.deletion import delete
from olivepress.database.sessions import Database
from olivepress.database.steps import Ending, fail
from olivepress.database.tables import JobRow
from olivepress.errors import Guarded
from olivepress.jobs import AttemptOutcome, JobKind, JobState, StepKind
from olivepress.recertification import AT_ONCE, Due, look, start_due
from olivepress.registry import Order, parse_reference
from olivepress.settings import Settings
from scheduler.app import Scheduler
from scheduler.recertify import Recertifier
from tests.integration.database_cases import claimed, job_of, on_both_databases, succeed
from tests.integration.registry_cases import FORCE, publish
from tests.integration.remeasuring_cases import (
    GATE,
    end_worker,
    everything,
    looked_at,
    published,
    validated,
    worker_with,
)

pytestmark = on_both_databases


def recertify(database: Database) -> int:
    """One look of a scheduler that has just started; how many jobs it started."""
    return Recertifier(database, everything).run()


def due(database: Database) -> dict[str, Due]:
    return {one.candidate.version: one.due for one in look(database)[1]}


def jobs_of(database: Database) -> list[int]:
    """Ids of the jobs that recertify."""
    with database.read() as session:
        return list(session.scalars(select(JobRow.id).where(JobRow.kind == JobKind.RECERTIFY).order_by(JobRow.id)))


def started(database: Database) -> int:
    """The one job that the scheduler's duty starts."""
    assert recertify(database) == 1
    return jobs_of(database)[-1]


def upgraded(database: Database, runtime: str = "2.3.0") -> None:
    """The worker is replaced by one whose runtime has another version."""
    end_worker(database, "worker-1")
    worker_with(database, runtime, f"worker-with-{runtime}")


@pytest.fixture
def version(database: Database) -> str:
    """Published and certified with 2.2.1, as the living worker has it."""
    version = published(database)
    worker_with(database, "2.2.1")
    return version


def test_with_the_runtime_of_the_certificate_nothing_is_started(database: Database, version: str) -> None:
    assert due(database) == {version: Due.CURRENT}
    assert recertify(database) == 0


def test_another_runtime_starts_one_job_of_low_priority_and_no_second_one(database: Database, version: str) -> None:
    upgraded(database)
    job = job_of(database, started(database))
    assert (job.kind, job.priority, job.particulars) == (JobKind.RECERTIFY, 0, {"runtime": "2.3.0"})
    assert due(database) == {version: Due.RUNNING}
    # As a scheduler that takes over, or starts again, would.
    assert recertify(database) == 0
    assert len(jobs_of(database)) == 1


def test_two_schedulers_that_looked_at_once_start_one_job(
    database: Database, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgraded(database)
    seen = look(database)
    monkeypatch.setattr("olivepress.recertification.look", lambda _: seen)
    assert [len(start_due(database, everything).jobs) for _ in range(2)] == [1, 0]
    assert len(jobs_of(database)) == 1


def test_while_workers_have_different_runtimes_or_none_lives_nothing_is_started(
    database: Database, version: str
) -> None:
    worker_with(database, "2.3.0", "worker-2")
    assert due(database) == {version: Due.UNKNOWN}
    end_worker(database, "worker-1")
    end_worker(database, "worker-2")
    assert due(database) == {version: Due.UNKNOWN}
    assert recertify(database) == 0


def test_a_version_that_fails_is_flagged_with_the_gates_and_keeps_its_alias(database: Database, version: str) -> None:
    upgraded(database)
    job_id = started(database)
    assert succeed(database, claimed(database, job_id, StepKind.VALIDATE), validated("2.3.0", GATE))
    found = looked_at(database, version)
    reason = found["flags"]["recertification_failed"]["reason"]
    assert f"job {job_id}, 2.3.0: gates failed: edge_cases (edge_cases: crashed: empty)" == reason
    assert found["aliases"] == ["latest"]
    assert [one["verdict"] for one in found["validations"]] == ["failed"]
    with pytest.raises(Guarded, match="it failed when it was certified again"), database.write() as session:
        promote(session, "default", parse_reference(version), "production", Order("anna"))
    assert due(database) == {version: Due.DONE}


def test_a_version_that_passes_with_the_next_runtime_loses_the_flag(database: Database, version: str) -> None:
    upgraded(database)
    succeed(database, claimed(database, started(database), StepKind.VALIDATE), validated("2.3.0", GATE))
    end_worker(database, "worker-with-2.3.0")
    worker_with(database, "2.3.1", "worker-with-2.3.1")
    succeed(database, claimed(database, started(database), StepKind.VALIDATE), validated("2.3.1"))
    found = looked_at(database, version)
    assert found["flags"] == {}
    assert [(one["runtime"], one["verdict"]) for one in found["validations"]] == [
        ("2.3.0", "failed"),
        ("2.3.1", "passed"),
    ]
    assert recertify(database) == 0


def test_a_runtime_that_comes_back_counts_as_another_one(database: Database, version: str) -> None:
    upgraded(database)
    succeed(database, claimed(database, started(database), StepKind.VALIDATE), validated("2.3.0", GATE))
    end_worker(database, "worker-with-2.3.0")
    worker_with(database, "2.2.1", "worker-again")
    succeed(database, claimed(database, started(database), StepKind.VALIDATE), validated("2.2.1"))
    assert looked_at(database, version)["flags"] == {}
    assert due(database) == {version: Due.DONE}


def test_a_version_that_the_new_runtime_cannot_even_open_is_flagged(database: Database, version: str) -> None:
    upgraded(database)
    job_id = started(database)
    held = claimed(database, job_id, StepKind.VALIDATE)
    ending = Ending(AttemptOutcome.FAILED, error_class="BadArtifact", error_message="the engine cannot open it")
    with database.write() as session:
        assert fail(session, held, ending, may_retry=False)
    assert (
        "it could not be run: the engine cannot open it"
        in (looked_at(database, version)["flags"]["recertification_failed"]["reason"])
    )


@pytest.mark.parametrize("how", ["cancelled", "no room"])
def test_what_ends_without_telling_of_the_model_flags_nothing_and_is_not_tried_for_ever(
    database: Database, version: str, how: str
) -> None:
    upgraded(database)
    job_id = started(database)
    with database.write() as session:
        if how == "cancelled":
            cancel_job(session, job_id)
    if how == "no room":
        held = claimed(database, job_id, StepKind.VALIDATE)
        with database.write() as session:
            fail(session, held, Ending(AttemptOutcome.FAILED, error_class="DiskFull"), may_retry=False)
    assert job_of(database, job_id).state in (JobState.CANCELLED, JobState.FAILED)
    assert looked_at(database, version)["flags"] == {}
    assert due(database) == {version: Due.DONE}
    assert recertify(database) == 0


def test_a_version_without_a_certificate_has_none_that_could_be_out_of_date(database: Database) -> None:
    publish(database, report={"gates": None})
    worker_with(database, "2.3.0")
    assert due(database) == {"m-int4:1": Due.UNCERTIFIED}
    assert recertify(database) == 0


@pytest.mark.parametrize("setting", ["on", "off"])
def test_the_scheduler_does_it_unless_it_is_switched_off(database_url: str, tmp_path: Path, setting: str) -> None:
    settings = Settings(
        database_url=database_url,
        data_dir=tmp_path,
        redis_url=SecretStr(f"unix://{tmp_path / 'redis.sock'}"),
        recertify=setting,
    )
    duties = {duty.name for duty in Scheduler(settings, threading.Event())._duties}
    assert ("recertify" in duties) is (setting == "on")


def test_versions_without_an_alias_and_deleted_ones_are_left_alone(database: Database, version: str) -> None:
    published(database, "/c/legal")
    upgraded(database)
    assert set(due(database)) == {version, "legal-int4:1"}
    with database.write() as session:
        delete(session, "default", parse_reference("legal-int4:1"), FORCE, 60.0)
    assert set(due(database)) == {version}


def test_only_a_few_run_at_once_unless_all_are_asked_for(database: Database, version: str) -> None:
    for number in range(AT_ONCE + 1):
        published(database, f"/c/tune-{number}")
    upgraded(database)
    assert recertify(database) == AT_ONCE
    assert recertify(database) == 0
    succeed(database, claimed(database, jobs_of(database)[0], StepKind.VALIDATE), validated("2.3.0"))
    assert recertify(database) == 1
    assert len(start_due(database, everything, most=None).jobs) == 1


def test_a_version_that_the_store_has_not_whole_is_told_and_does_not_keep_others_waiting(
    database: Database, version: str
) -> None:
    published(database, "/c/legal")
    upgraded(database)
    broken: list[str] = []

    def has(digest: str) -> bool:
        broken[:] = broken or [digest]
        return digest != broken[0]

    found = start_due(database, has, most=1)
    assert len(found.jobs) == 1
    assert "does not have all of support-int4:1" in found.problems[0]
