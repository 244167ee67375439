"""Tables and lines for people, from the JSON values that the client gives."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich import box
from rich.table import Column, Table
from rich.text import Text

from olivepress.jobs import JobState, StepKind, StepState
from olivepress.steps import ONCE_A_JOB

Json = dict[str, Any]
WAITS = " waits"
NOTHING = "–"
COLOURS = {
    StepState.SUCCEEDED.value: "green",
    StepState.RUNNING.value: "cyan",
    StepState.FAILED.value: "red",
    StepState.DEAD.value: "red",
    StepState.CANCELLED.value: "yellow",
    "passed": "green",
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
}
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def plain_table(*columns: str | Column, header: bool = True, gap: int = 2) -> Table:
    """A table as all commands show them. Names wrap rather than lose their end, for people copy them."""
    # The box puts one space between columns.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=header, padding=(0, gap - 1, 0, 0))
    for column in columns:
        shown = Column(column, overflow="fold") if isinstance(column, str) else column
        table.add_column(shown.header, justify=shown.justify, overflow=shown.overflow, no_wrap=shown.no_wrap)
    return table


def figure(header: str) -> Column:
    """A column of figures: they never wrap."""
    return Column(header, justify="right", no_wrap=True)


def word(header: str) -> Column:
    """A column of short words: they never wrap."""
    return Column(header, no_wrap=True)


def batch_table(batch: Json) -> Table:
    """What became of each job of a batch (as `Client.batch` gives it): sizes, speed, proof, model version."""
    table = plain_table(
        "checkpoint",
        word("recipe"),
        figure("size before\n→ after"),
        figure("tokens\nper s"),
        figure("first\ntoken"),
        figure("peak\nmemory"),
        figure("prompts\npassed"),
        word("certif-\nicate"),
        "model:version",
        gap=1,
    )
    for job in batch["jobs"]:
        figures = job["figures"] or {}
        table.add_row(
            job["name"],
            job["recipe"],
            size_change(figures.get("source_size_bytes"), figures.get("size_bytes")),
            number(figures.get("tokens_per_s")),
            milliseconds(figures.get("first_token_ms")),
            size(figures.get("peak_rss_bytes")),
            prompts_passed(figures),
            state_text(figures.get("certificate") or NOTHING),
            Text(job["version"], style="green") if job["version"] else state_text(job["state"]),
        )
    return table


def failure_lines(batch: Json) -> list[Text]:
    """One line for each job of a batch that failed: which, and what to do now."""
    return [
        Text.assemble((f"job {job['id']} ", "bold"), f"{job['name']} {job['recipe']}: ", (_error(job), "red"))
        for job in batch["jobs"]
        if job["state"] == JobState.FAILED
    ]


def jobs_table(jobs: Iterable[Json]) -> Table:
    """Jobs with the step that each is at."""
    table = plain_table(
        figure("job"),
        figure("batch"),
        "checkpoint",
        word("recipe"),
        word("state"),
        word("step"),
        figure("time"),
        "model:version",
    )
    for job in jobs:
        table.add_row(
            str(job["id"]),
            str(job["batch_id"]),
            job["name"],
            job["recipe"],
            state_text(job["state"]),
            step_text(job),
            duration(job["seconds"]),
            # What it measures again is not its own.
            job["version"] or (f"({job['subject']})" if job.get("subject") else NOTHING),
        )
    return table


def steps_table(job: Json) -> Table:
    """The steps of a job with their last attempt."""
    table = plain_table(
        word("step"),
        word("state"),
        figure("time\n(predicted)"),
        figure("attempts"),
        figure("cpu"),
        figure("peak memory\n(predicted)"),
        "note",
    )
    for step in job["steps"]:
        last = step["attempts"][-1] if step["attempts"] else {}
        table.add_row(
            _with_rung(step, job["ladder"]),
            state_text(step["state"]),
            _with_predicted(duration(step["seconds"]), duration(step["predicted_s"])),
            str(len(step["attempts"])),
            duration(last.get("cpu_s")),
            _with_predicted(size(last.get("peak_rss_bytes")), size(step["predicted_memory_bytes"])),
            _note(step),
        )
    return table


def ladder_text(job: Json) -> str:
    """What came of each recipe of a job's ladder: `cpu-int4 failed, cpu-int8 passed, cpu-fp16 not tried`."""
    verdicts = {rung["recipe"]: rung["verdict"] for rung in (job["report"] or {}).get("rungs", ())}
    return ", ".join(f"{recipe} {verdicts.get(recipe, 'not tried')}" for recipe in job["ladder"])


def attempts_table(step: Json) -> Table:
    """How the attempts of a step ended."""
    table = plain_table(
        figure("attempt"), word("outcome"), figure("exit"), figure("signal"), figure("time"), "worker", "error"
    )
    for attempt in step["attempts"]:
        table.add_row(
            str(attempt["number"]),
            attempt["outcome"] or "running",
            given(attempt["exit_code"]),
            given(attempt["signal"]),
            duration(_between(attempt["started_at"], attempt["finished_at"])),
            attempt["worker_id"],
            attempt["error_class"] or NOTHING,
        )
    return table


def recipes_table(recipes: Iterable[Json]) -> Table:
    """Recipes and what they are for."""
    table = plain_table(word("recipe"), word("precision"), figure("version"), "what it is for")
    for recipe in recipes:
        table.add_row(recipe["name"], recipe["precision"], str(recipe["version"]), recipe["summary"])
    return table


def workers_table(workers: Iterable[Json]) -> Table:
    """Workers, what they run on and with."""
    table = plain_table(
        "worker", word("state"), word("pools"), figure("busy"), figure("memory"), "processor", "toolchain"
    )
    for worker in workers:
        toolchain = worker["toolchain"]
        shown = [f"{name} {toolchain[name]}" for name in ("olive-ai", "onnxruntime-genai") if name in toolchain]
        state = "alive" if worker["alive"] else "stopped" if worker["stopped_at"] else "lost"
        table.add_row(
            worker["id"],
            Text(state, style={"alive": "green", "lost": "red"}.get(state, "yellow")),
            ",".join(worker["pools"]) if worker["memory_bytes"] else "(only publishes)",
            f"{worker['running_steps']}/{worker['slots']}",
            size(worker["memory_bytes"]),
            str(worker["hardware"].get("processor", NOTHING)),
            ", ".join(shown) or NOTHING,
        )
    return table


def checks_table(checks: Iterable[Json]) -> Table:
    """Checks, and what to do where one is not ok."""
    table = plain_table(word("status"), word("part"), "what was found, and what now", header=False)
    for check in checks:
        detail = check["detail"] if check["what_now"] is None else f"{check['detail']}\n→ {check['what_now']}"
        table.add_row(state_text(check["status"]), check["name"], detail)
    return table


def step_text(job: Json) -> str:
    """Where a job is, in a word or two: its running step and phase, or the step that it waits for."""
    if job["state"] in (JobState.SUCCEEDED, JobState.CANCELLED):
        return NOTHING
    for step in job["steps"]:
        if step["state"] in (StepState.FAILED, StepState.DEAD):
            return str(step["kind"])
        if step["state"] == StepState.RUNNING:
            return f"{step['kind']}: {step['phase']}" if step["phase"] else str(step["kind"])
        if step["state"] == StepState.QUEUED:
            if step["waits_for"]:
                return f"{step['kind']} waits: {step['waits_for']}"
            again = f", attempt {step['attempt'] + 1}" if step["attempt"] else ""
            return f"{step['kind']}{WAITS}{again}"
    # No step failed, and yet the job did: its artifact was not good enough.
    return "gates"


def reuse_lines(batch: Json) -> list[str]:
    """One line for each job of a batch that did not run all of its steps: which, and whose results they are."""
    return [
        f"job {job['id']} {job['name']} {job['recipe']}: {'; '.join(parts)}"
        for job in batch["jobs"]
        if (parts := _reuse(job["steps"]))
    ]


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=COLOURS.get(state, ""))


def size(size_bytes: float | None) -> str:
    """Bytes for people: 15.3 MB."""
    if size_bytes is None:
        return NOTHING
    for unit_bytes, unit in _UNITS:
        if size_bytes >= unit_bytes:
            return f"{_three_digits(size_bytes / unit_bytes)} {unit}"
    return f"{size_bytes:.0f} B"


def size_change(before: float | None, after: float | None) -> str:
    """Bytes before and after: 15.3 → 2.87 MB."""
    first, second = size(before), size(after)
    if before is not None and after is not None and first.split()[1] == second.split()[1]:
        first = first.split()[0]
    return f"{first} → {second}" if after is not None else first


def number(value: float | None) -> str:
    """A figure with as many digits as tell something."""
    return NOTHING if value is None else _three_digits(value)


def milliseconds(value: float | None) -> str:
    """Milliseconds: 12.3 ms."""
    return NOTHING if value is None else f"{_three_digits(value)} ms"


def duration(seconds: float | None) -> str:
    """Seconds for people: 12.3 s, 4:07, 1:02:03."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def when(time: float | None) -> str:
    """A time of the database as local date and minute."""
    return NOTHING if time is None else datetime.fromtimestamp(time).astimezone().strftime("%Y-%m-%d %H:%M")


def prompts_passed(figures: Mapping[str, Any]) -> str:
    """How many of the domain prompts with an expectation were met: 7/8."""
    asked = figures.get("prompts_with_expectation")
    return f"{figures['prompts_passed']}/{asked}" if asked else NOTHING


def _error(job: Json) -> str:
    return str(job["error_message"] or job["error_class"] or "it failed without a message; see its log")


def _note(step: Json) -> str:
    if step["error_message"]:
        return str(step["error_class"] or "error")
    if step["reused"]:
        return _reused(step)
    if step["waits_for"]:
        return str(step["waits_for"])
    return str(step["phase"] or "") if step["state"] == StepState.RUNNING else ""


def _with_rung(step: Json, ladder: Sequence[str]) -> str:
    is_of_a_rung = ladder and StepKind(step["kind"]) not in ONCE_A_JOB
    return f"{step['kind']} {ladder[step['rung']]}" if is_of_a_rung else str(step["kind"])


def _with_predicted(used: str, predicted: str) -> str:
    return used if NOTHING in (used, predicted) else f"{used} ({predicted})"


def _reuse(steps: Iterable[Json]) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for step in steps:
        if step["reused"]:
            kinds.setdefault(_reused(step), []).append(step["kind"])
    return [f"{', '.join(names)} {source}" for source, names in kinds.items()]


def _reused(step: Json) -> str:
    return f"reused from job {step['reused_job']}" if step["reused_job"] else "reused from another team's job"


def _between(started_at: float | None, finished_at: float | None) -> float | None:
    return None if started_at is None or finished_at is None else finished_at - started_at


def given(value: Any) -> str:
    """A value, or the sign for none."""
    return NOTHING if value is None else str(value)


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
