"""What people read: the table of a batch and its figures."""

from io import StringIO

import pytest
from rich.console import Console, RenderableType

from olivepress.cli.tables import (
    batch_table,
    duration,
    failure_lines,
    jobs_table,
    ladder_text,
    number,
    prompts_passed,
    reuse_lines,
    size,
    size_change,
    step_text,
    steps_table,
)
from olivepress.jobs import JobState
from tests.unit.cli_cases import FIGURES, STEP_ORDER, batch_of, job_of, step_of


def rendered(content: RenderableType, width: int = 100) -> list[str]:
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(content)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_a_batch_shows_all_figures_of_a_job_on_one_line_of_100_columns() -> None:
    lines = rendered(batch_table(batch_of(job_of(1, name="support-en"))))

    row = next(line for line in lines if line.startswith("support-en"))
    assert " ".join(row.split()) == (
        "support-en cpu-int4 15.2 → 3.54 MB 412 8.41 ms 212 MB 7/8 passed support-en-int4:1"
    )
    assert max(map(len, lines)) <= 100


def test_a_long_name_wraps_and_leaves_the_figures_whole() -> None:
    name = "a-checkpoint-with-a-very-long-name-of-fifty-letters"

    lines = rendered(batch_table(batch_of(job_of(1, name=name))))

    assert any("15.2 → 3.54 MB" in line and "8.41 ms" in line and "212 MB" in line for line in lines)
    assert name.replace("-", "") in "".join(line.split(" ")[0] for line in lines).replace("-", "")
    assert max(map(len, lines)) <= 100


def test_a_failed_job_shows_what_was_measured_and_that_it_failed() -> None:
    figures = FIGURES | {"prompts_passed": 2, "certificate": "failed"}
    job = job_of(1, JobState.FAILED, figures=figures, error_message="validate: gate failed: prompts_passed is 0.25")

    lines = rendered(batch_table(batch_of(job)))

    row = next(line for line in lines if line.startswith("support-1"))
    assert row.split()[-3:] == ["2/8", "failed", "failed"]


def test_every_failed_job_gives_its_message() -> None:
    batch = batch_of(
        job_of(1),
        job_of(2, JobState.FAILED, error_message="ingest: no config.json; copy the whole folder"),
        job_of(3, JobState.FAILED, error_class="RuntimeCrashed"),
        job_of(4, JobState.CANCELLED),
    )

    lines = [line.plain for line in failure_lines(batch)]

    assert lines == [
        "job 2 support-2 cpu-int4: ingest: no config.json; copy the whole folder",
        "job 3 support-3 cpu-int4: RuntimeCrashed",
    ]


def test_square_brackets_of_a_message_are_shown() -> None:
    batch = batch_of(job_of(1, JobState.FAILED, error_message="tensor [bold]x[/] has shape [3, 4]"))

    assert "tensor [bold]x[/] has shape [3, 4]" in rendered(failure_lines(batch)[0])[0]


def test_a_list_of_jobs_says_at_which_step_each_is() -> None:
    steps = [step_of("ingest", "succeeded"), step_of("convert", "running", phase="building")]
    waiting = [step_of("ingest", "succeeded"), step_of("convert", "queued", attempt=1)]

    running, again = job_of(1, JobState.RUNNING, steps=steps), job_of(2, JobState.RUNNING, steps=waiting)

    assert step_text(running) == "convert: building"
    assert step_text(again) == "convert waits, attempt 2"
    assert "convert: building" in "\n".join(rendered(jobs_table([running])))


def test_a_job_stopped_by_its_gates_says_so_though_no_step_failed() -> None:
    steps = [step_of(kind.value, "cancelled" if kind == "publish" else "succeeded") for kind in STEP_ORDER]

    assert step_text(job_of(1, JobState.FAILED, steps=steps)) == "gates"


def test_what_was_reused_is_told_with_its_job_only_within_the_team() -> None:
    steps = [
        step_of("ingest", "succeeded"),
        step_of("convert", "succeeded", reused=True, reused_job=4),
        step_of("package", "succeeded", reused=True, reused_job=4),
        step_of("validate", "succeeded", reused=True, reused_job=None),
        step_of("publish", "succeeded"),
    ]

    assert reuse_lines(batch_of(job_of(8), job_of(9, steps=steps))) == [
        "job 9 support-9 cpu-int4: convert, package reused from job 4; validate reused from another team's job"
    ]


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(None, "–"), (0, "0 B"), (999, "999 B"), (1500, "1.50 kB"), (15_250_000, "15.2 MB"), (4.3e9, "4.30 GB")],
)
def test_sizes_have_three_digits(size_bytes: float | None, text: str) -> None:
    assert size(size_bytes) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (15_250_000, 3_540_000, "15.2 → 3.54 MB"),
        (1_200_000_000, 317_000_000, "1.20 GB → 317 MB"),
        (15_250_000, None, "15.2 MB"),
        (None, None, "–"),
    ],
)
def test_a_change_of_size_names_the_unit_once_where_it_can(before: int | None, after: int | None, text: str) -> None:
    assert size_change(before, after) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0.04, "0.0 s"), (59.94, "59.9 s"), (247.9, "4:07"), (3723, "1:02:03")]
)
def test_durations_read_as_people_write_them(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(1234.5, "1234"), (99.94, "99.9"), (99.96, "100"), (9.996, "10.0")])
def test_figures_round_at_the_third_digit(value: float, text: str) -> None:
    assert number(value) == text


def test_prompts_without_expectation_are_not_called_passed() -> None:
    assert prompts_passed({"prompts_with_expectation": 0, "prompts_passed": 0}) == "–"
    assert prompts_passed({}) == "–"


def test_the_steps_of_a_ladder_name_their_rung_and_what_came_of_each() -> None:
    ladder = ["cpu-int4", "cpu-int8", "cpu-fp16"]
    kinds = [("ingest", 0), ("convert", 0), ("validate", 0), ("convert", 1), ("validate", 1), ("publish", 0)]
    steps = [step_of(kind, "succeeded", rung=rung, attempts=[], error_message=None) for kind, rung in kinds]
    rungs = [{"recipe": "cpu-int4", "verdict": "failed"}, {"recipe": "cpu-int8", "verdict": "passed"}]
    job = job_of(1, ladder=ladder, rung=1, recipe="cpu-int8", steps=steps, report={"rungs": rungs})

    shown = "\n".join(rendered(steps_table(job)))

    assert "convert cpu-int4" in shown
    assert "validate cpu-int8" in shown
    assert "publish cpu" not in shown
    assert ladder_text(job) == "cpu-int4 failed, cpu-int8 passed, cpu-fp16 not tried"
