"""A published version is measured again by order, and nothing is published by it; over real databases."""

from collections.abc import Callable

import pytest
from sqlalchemy import select

from olivepress.database import unblocking, version_flags, views
from olivepress.database.sessions import Database
from olivepress.database.stranded import look_after_stranded
from olivepress.database.tables import VersionRow
from olivepress.database.versions import find_version
from olivepress.errors import BadArtifact, BadRecipe, NotFound, PermanentError
from olivepress.job_orders import ValidationOrder
from olivepress.jobs import JobState, StepKind, StepState
from olivepress.measuring_again import validate
from olivepress.registry import VersionFlag, parse_reference
from olivepress.steps import spec_of
from tests.integration.database_cases import claim, claimed, job_of, on_both_databases, step_of, succeed
from tests.integration.registry_cases import publish
from tests.integration.remeasuring_cases import (
    GATE,
    everything,
    looked_at,
    published,
    validated,
    worker_with,
)

OTHER_PROMPT = {"prompt": "How do I return it?", "expect": {"contains": "label"}}


def ordered(
    database: Database, version: str, order: ValidationOrder | None = None, has: Callable[[str], bool] = everything
) -> int:
    """The job that measures a version again."""
    wanted = parse_reference(version)
    (job_id,) = validate(database, has, "default", wanted, order or ValidationOrder()).job_ids
    return job_id


def is_flagged(database: Database, version: str) -> list[str]:
    return sorted(looked_at(database, version)["flags"])


def flag_unvalidated(database: Database, version: str) -> None:
    with database.write() as session:
        _, row = find_version(session, "default", parse_reference(version))
        version_flags.flag(session, row.id, VersionFlag.UNVALIDATED, "no time")


@on_both_databases
def test_only_validate_runs_and_what_was_remembered_does_not_answer(database: Database) -> None:
    version = published(database)
    worker_with(database, "2.2.1")
    job_id = ordered(database, version)
    with database.read() as session:
        steps = views.job(session, job_id)["steps"]
    assert [(step["kind"], step["state"]) for step in steps] == [
        ("ingest", "succeeded"),
        ("package", "succeeded"),
        ("reference", "succeeded"),
        ("validate", "queued"),
    ]
    first = step_of(database, 1, StepKind.VALIDATE)
    again = step_of(database, job_id, StepKind.VALIDATE)
    assert again.key == first.key
    assert again.memory_bytes > 0


@on_both_databases
def test_a_validation_that_passed_publishes_nothing_and_the_version_lists_it(database: Database) -> None:
    version = published(database)
    worker_with(database, "2.2.1")
    job_id = ordered(database, version)
    assert succeed(database, claimed(database, job_id, StepKind.VALIDATE), validated("2.2.1"))
    assert job_of(database, job_id).state == JobState.SUCCEEDED
    with database.read() as session:
        assert session.scalars(select(VersionRow.number)).all() == [1]
        assert views.job(session, job_id)["subject"] == version
        assert views.job(session, job_id)["report"]["size_bytes"] == 7
    (listed,) = looked_at(database, version)["validations"]
    assert (listed["job_id"], listed["kind"], listed["verdict"], listed["runtime"]) == (
        job_id,
        "validate",
        "passed",
        "2.2.1",
    )


@on_both_databases
def test_a_validation_whose_gates_fail_has_failed_and_the_alias_stays(database: Database) -> None:
    version = published(database)
    worker_with(database, "2.2.1")
    job_id = ordered(database, version)
    assert succeed(database, claimed(database, job_id, StepKind.VALIDATE), validated("2.2.1", GATE))
    job = job_of(database, job_id)
    assert (job.state, job.error_class) == (JobState.FAILED, "GateFailed")
    found = looked_at(database, version)
    assert (found["aliases"], found["flags"], found["validations"][0]["verdict"]) == (["latest"], {}, "failed")


def test_other_prompts_gates_and_soak_are_what_validate_is_told(database: Database) -> None:
    version = published(database, prompts=[{"prompt": "Hello"}])
    order = ValidationOrder.model_validate({"prompts": [OTHER_PROMPT], "gates": {"max_size_ratio": 0.4}, "soak": "20"})
    job_id = ordered(database, version, order)
    with database.read() as session:
        job, done = unblocking.job_facts(session, job_id), unblocking.done_steps(session, job_id)
    spec = spec_of(StepKind.VALIDATE, job, done)
    assert [prompt["prompt"] for prompt in spec["prompts"]] == ["How do I return it?"]
    assert (spec["gates"]["max_size_ratio"], spec["gates"]["certificate_required"]) == (0.4, True)
    assert spec["soak"] == {"sessions": 20}


def test_without_an_order_for_others_the_first_prompts_are_asked(database: Database) -> None:
    version = published(database, prompts=[{"prompt": "Hello"}])
    job_id = ordered(database, version)
    with database.read() as session:
        assert [prompt["prompt"] for prompt in unblocking.job_facts(session, job_id).prompts] == ["Hello"]


@on_both_databases
def test_what_the_source_said_is_left_out_where_the_store_has_it_no_more(database: Database) -> None:
    version = published(database)
    gone = step_of(database, 1, StepKind.REFERENCE).artifact_digest
    job_id = ordered(database, version, has=lambda digest: digest != gone)
    with database.read() as session:
        assert [step["kind"] for step in views.job(session, job_id)["steps"]] == ["ingest", "package", "validate"]


def test_a_version_whose_package_is_gone_is_refused_and_leaves_no_batch(database: Database) -> None:
    version = published(database)
    with pytest.raises(BadArtifact, match=r"does not have all of support-int4:1; `olivepress store check"):
        ordered(database, version, has=lambda digest: False)
    with database.read() as session:
        assert len(views.batches(session, "default", 10)) == 1


def test_a_version_that_no_job_made_is_refused_with_what_to_do(database: Database) -> None:
    publish(database)
    with pytest.raises(PermanentError, match="olivepress pull m-int4:1 --to DIR, olivepress import DIR"):
        ordered(database, "m-int4:1")


def test_a_version_that_is_not_there_and_a_gate_that_cannot_be_are_refused(database: Database) -> None:
    version = published(database)
    with pytest.raises(NotFound):
        ordered(database, "support-int4:2")
    with pytest.raises(BadRecipe, match="there is no gate 'max_size'"):
        ordered(database, version, ValidationOrder(gates={"max_size": 1}))


def test_of_a_ladder_the_rung_that_was_published_is_measured(database: Database) -> None:
    """Its package, not that of the rung that failed."""
    version = published(database, ladder=["cpu-int4", "cpu-int8"])
    job_id = ordered(database, version)
    assert step_of(database, job_id, StepKind.PACKAGE).artifact_digest == (
        step_of(database, 1, StepKind.PACKAGE).artifact_digest
    )
    assert job_of(database, job_id).ladder is None


@on_both_databases
def test_where_no_worker_lives_the_step_waits_for_the_first_that_comes(database: Database) -> None:
    version = published(database)
    job_id = ordered(database, version)
    assert claim(database, job_id, StepKind.VALIDATE) is None
    worker_with(database, "2.2.1")
    with database.write() as session:
        look_after_stranded(session, everything, 60.0)
    assert claim(database, job_id, StepKind.VALIDATE) is not None


@on_both_databases
def test_a_version_that_was_never_validated_is_no_longer_flagged_once_it_passed(database: Database) -> None:
    version = published(database)
    worker_with(database, "2.2.1")
    flag_unvalidated(database, version)
    job_id = ordered(database, version)
    assert succeed(database, claimed(database, job_id, StepKind.VALIDATE), validated("2.2.1"))
    assert is_flagged(database, version) == []


def test_passing_by_other_limits_takes_no_flag_away(database: Database) -> None:
    version = published(database)
    worker_with(database, "2.2.1")
    flag_unvalidated(database, version)
    job_id = ordered(database, version, ValidationOrder(gates={"edge_cases": False}))
    assert succeed(database, claimed(database, job_id, StepKind.VALIDATE), validated("2.2.1"))
    assert is_flagged(database, version) == ["unvalidated"]
    assert step_of(database, job_id, StepKind.VALIDATE).state == StepState.SUCCEEDED
