"""Ladders: the first recipe whose gates its model passes; over real databases."""

from sqlalchemy import select

from olivepress.database import views
from olivepress.database.cancelling import cancel_job
from olivepress.database.sessions import Database
from olivepress.database.tables import StepRow
from olivepress.jobs import JobState, StepKind, StepState
from olivepress.steps import StepResult
from tests.integration.database_cases import (
    RESULTS,
    claim,
    claimed,
    job_of,
    on_both_databases,
    run_until,
    step_of,
    submit_paths,
    succeed,
)

pytestmark = on_both_databases
GATE = {"name": "min_top1_agreement", "figure": 0.4, "limit": 0.7, "verdict": "failed", "note": ""}
FAILED = StepResult({"verdict": "failed", "report": {"size_bytes": 7, "gates": [GATE]}})
LADDER = ["cpu-int4-small", "cpu-int8", "cpu-fp16"]


def plan_of(database: Database, job_id: int) -> list[tuple[int, str]]:
    """Rung and kind of a job's steps, in the order in which they run."""
    query = select(StepRow.rung, StepRow.kind).where(StepRow.job_id == job_id).order_by(StepRow.position)
    with database.read() as session:
        return [(rung, kind) for rung, kind in session.execute(query)]


def run(database: Database, job_id: int, *kinds: StepKind) -> None:
    """Run these steps of the rung that the job is on; what each rung converts is its own."""
    for kind in kinds:
        rung = job_of(database, job_id).rung
        own = f"{rung:064x}" if kind in (StepKind.CONVERT, StepKind.PACKAGE) else RESULTS[kind].artifact_digest
        succeed(database, claimed(database, job_id, kind), StepResult(RESULTS[kind].result, own))


def fail_rung(database: Database, job_id: int, *, first: bool) -> None:
    """Run a job to the validate of its rung, whose gates fail."""
    if first:
        run_until(database, job_id, StepKind.REFERENCE)
    else:
        run(database, job_id, StepKind.CONVERT, StepKind.PACKAGE)
    succeed(database, claimed(database, job_id, StepKind.VALIDATE), FAILED)


def test_a_job_whose_gates_failed_goes_on_with_the_next_recipe(database: Database) -> None:
    (job_id,) = submit_paths(database, "/c/support", ladder=LADDER)
    assert (job_of(database, job_id).recipe_name, job_of(database, job_id).model_name) == (
        "cpu-int4-small",
        "support-int4",
    )
    fail_rung(database, job_id, first=True)
    job = job_of(database, job_id)
    assert (job.state, job.rung, job.recipe_name, job.model_name) == (
        JobState.RUNNING,
        1,
        "cpu-int8",
        "support-int8",
    )
    assert plan_of(database, job_id) == [
        (0, "ingest"),
        (0, "convert"),
        (0, "package"),
        (0, "reference"),
        (0, "validate"),
        (1, "convert"),
        (1, "package"),
        (1, "validate"),
        (0, "publish"),
    ]
    assert claim(database, job_id, StepKind.PUBLISH) is None


def test_the_rung_that_passes_is_published_and_the_report_shows_every_rung(database: Database) -> None:
    (job_id,) = submit_paths(database, "/c/support", ladder=LADDER)
    fail_rung(database, job_id, first=True)
    run(database, job_id, StepKind.CONVERT, StepKind.PACKAGE, StepKind.VALIDATE, StepKind.PUBLISH)
    assert job_of(database, job_id).state == JobState.SUCCEEDED
    with database.read() as session:
        rungs = views.job(session, job_id)["report"]["rungs"]
    assert [(rung["recipe"], rung["verdict"], rung["failed_gates"]) for rung in rungs] == [
        ("cpu-int4-small", "failed", ["min_top1_agreement"]),
        ("cpu-int8", "passed", []),
    ]


def test_a_ladder_whose_last_rung_fails_has_failed_with_that_rungs_gates(database: Database) -> None:
    (job_id,) = submit_paths(database, "/c/support", ladder=LADDER[:2])
    fail_rung(database, job_id, first=True)
    fail_rung(database, job_id, first=False)
    job = job_of(database, job_id)
    assert (job.state, job.error_class) == (JobState.FAILED, "GateFailed")
    assert "on the last of 2 rungs (cpu-int8): min_top1_agreement is 0.4" in (job.error_message or "")
    assert step_of(database, job_id, StepKind.PUBLISH).state == StepState.CANCELLED


def test_a_second_job_climbs_by_what_is_remembered_of_the_first(database: Database) -> None:
    (first,) = submit_paths(database, "/c/support", ladder=LADDER)
    fail_rung(database, first, first=True)
    (second,) = submit_paths(database, "/c/support", ladder=LADDER)
    succeed(database, claimed(database, second, StepKind.INGEST))
    assert job_of(database, second).rung == 1
    assert step_of(database, second, StepKind.CONVERT).state == StepState.QUEUED


def test_the_source_is_run_once_for_all_rungs_and_what_it_said_goes_into_each_validate(database: Database) -> None:
    (job_id,) = submit_paths(database, "/c/support", ladder=LADDER)
    fail_rung(database, job_id, first=True)
    first_key = step_of(database, job_id, StepKind.VALIDATE).key
    run(database, job_id, StepKind.CONVERT, StepKind.PACKAGE)
    assert sum(kind == StepKind.REFERENCE for _, kind in plan_of(database, job_id)) == 1
    assert step_of(database, job_id, StepKind.VALIDATE).state == StepState.QUEUED
    assert step_of(database, job_id, StepKind.VALIDATE).key != first_key


def test_a_cancelled_ladder_goes_no_further(database: Database) -> None:
    (job_id,) = submit_paths(database, "/c/support", ladder=LADDER)
    run_until(database, job_id, StepKind.REFERENCE)
    held = claimed(database, job_id, StepKind.VALIDATE)
    with database.write() as session:
        cancel_job(session, job_id)
    succeed(database, held, FAILED)
    assert job_of(database, job_id).state == JobState.CANCELLED
    assert claim(database, job_id, StepKind.CONVERT) is None


def test_recipes_of_one_batch_may_have_different_steps(database: Database) -> None:
    dynamic = {
        "name": "dynamic",
        "precision": "int8",
        "olive_passes": {
            "builder_precision": "fp32",
            "after": [{"type": "OnnxDynamicQuantization", "config": {}}],
        },
    }
    plain, quantized = submit_paths(database, "/c/support", recipes=["cpu-fp32", dynamic])
    assert [kind for _, kind in plan_of(database, plain)] == [
        "ingest",
        "convert",
        "package",
        "reference",
        "validate",
        "publish",
    ]
    assert [kind for _, kind in plan_of(database, quantized)][1:3] == ["convert", "quantize"]
    run_until(database, plain, StepKind.CONVERT)
    convert = step_of(database, quantized, StepKind.CONVERT)
    assert (convert.state, convert.artifact_digest) == (
        StepState.SUCCEEDED,
        RESULTS[StepKind.CONVERT].artifact_digest,
    )
    assert step_of(database, quantized, StepKind.QUANTIZE).state == StepState.QUEUED
