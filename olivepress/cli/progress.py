"""Following a batch until it is over: bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from olivepress.cli.tables import COLOURS, WAITS, duration, state_text, step_text
from olivepress.client import Client
from olivepress.errors import ServiceUnavailable
from olivepress.jobs import FINAL_JOB_STATES, JobState, StepState

Json = dict[str, Any]
Sleep = Callable[[float], None]

LOOK_EVERY_S = 0.25
# A restart of the API takes seconds; a batch takes hours.
OUTAGE_LIMIT_S = 120.0
MAX_BARS = 30
BAR_WIDTH = 20
NAME_WIDTH = 28
# Lines around the bars.
MARGIN_LINES = 4


class Display(Protocol):
    """Shows each look at the batch."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, batch: Json) -> None:
        """Show the batch as it is now."""

    def note(self, text: str) -> None:
        """Say something beside the batch."""


def watch_batch(client: Client, batch_id: int, console: Console, sleep: Sleep = time.sleep) -> Json:
    """Follow a batch until it is over and give it as it is then, with all jobs.

    An API that does not answer for a while is waited for.

    Raises:
        NotFound: there is no such batch.
        ServiceUnavailable: the API does not answer for OUTAGE_LIMIT_S.
    """
    looks = _Looks(client, batch_id, sleep)
    display: Display = _Bars(console) if console.is_terminal else _Lines(console)
    with display:
        while True:
            batch = looks.next(display.note)
            display.show(batch)
            if batch["state"] in FINAL_JOB_STATES:
                break
            sleep(LOOK_EVERY_S)
    return client.batch(batch_id) if looks.is_large else batch


class _Looks:
    """One look after the other; of a large batch only at the jobs that run."""

    def __init__(self, client: Client, batch_id: int, sleep: Sleep) -> None:
        self._client = client
        self._batch_id = batch_id
        self._sleep = sleep
        self.is_large = _job_count(self._look_at_running()) > MAX_BARS

    def next(self, note: Callable[[str], None]) -> Json:
        lost_at: float | None = None
        while True:
            try:
                return self._look_at_running() if self.is_large else self._client.batch(self._batch_id)
            except ServiceUnavailable as error:
                now = time.monotonic()
                if lost_at is None:
                    lost_at = now
                    note(f"{error}; waiting for it")
                if now - lost_at > OUTAGE_LIMIT_S:
                    raise
                self._sleep(LOOK_EVERY_S)

    def _look_at_running(self) -> Json:
        return self._client.batch(self._batch_id, states=[JobState.RUNNING])


class _Bars:
    """A bar for each job, on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, batch: Json) -> None:
        limit = max(1, min(MAX_BARS, self._console.height - MARGIN_LINES))
        self._live.update(bars(batch, limit), refresh=True)

    def note(self, text: str) -> None:
        self._console.print(Text(text, style="yellow"))


class _Lines:
    """A line for each change, where nobody sees bars."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen: dict[int, str] = {}
        self._summary = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, batch: Json) -> None:
        if _job_count(batch) <= MAX_BARS:
            for job in batch["jobs"]:
                self._show_change(job)
        summary = summary_text(batch)
        if summary != self._summary:
            self._summary = summary
            self.note(summary)

    def note(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _show_change(self, job: Json) -> None:
        text = _job_line(job)
        # The moment between two steps is nobody's news.
        if text.endswith(WAITS):
            return
        if self._seen.get(job["id"]) != text:
            self._seen[job["id"]] = text
            self.note(f"job {job['id']}  {job['name']}  {job['recipe']}  {text}")


def bars(batch: Json, limit: int = MAX_BARS) -> RenderableType:
    """A batch as a summary line and a bar for each job; of more than `limit` jobs, those that run."""
    jobs = batch["jobs"]
    if _job_count(batch) > limit:
        jobs = [job for job in jobs if job["state"] == JobState.RUNNING][:limit]
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(no_wrap=True, max_width=NAME_WIDTH)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, width=BAR_WIDTH)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column(no_wrap=True, justify="right")
    for job in jobs:
        colour = COLOURS.get(job["state"], "")
        bar = ProgressBar(total=1.0, completed=done_share(job), width=BAR_WIDTH, complete_style=colour or "cyan")
        table.add_row(job["name"], job["recipe"], bar, _job_text(job), duration(job["seconds"]))
    return Group(Text(summary_text(batch), style="bold"), table)


def summary_text(batch: Json) -> str:
    """A batch in one line: how many of its jobs are where."""
    counts = batch["counts"]
    over = sum(counts[state] for state in FINAL_JOB_STATES)
    parts = [f"{over} of {_job_count(batch)} done"]
    parts += [
        f"{counts[state]} {state}" for state in (JobState.FAILED, JobState.CANCELLED, JobState.RUNNING) if counts[state]
    ]
    name = f" {batch['name']}" if batch["name"] else ""
    stuck = f"; {batch['waits_for']}" if batch["waits_for"] else ""
    return f"batch {batch['id']}{name}: {', '.join(parts)}{stuck}"


def done_share(job: Json) -> float:
    """How much of a job is done, 0 to 1: every step counts the same, a running one by its own share."""
    if job["state"] == JobState.SUCCEEDED:
        return 1.0
    shares = [_step_share(step) for step in job["steps"]]
    return sum(shares) / len(shares) if shares else 0.0


def _step_share(step: Json) -> float:
    if step["state"] == StepState.SUCCEEDED:
        return 1.0
    return float(step["share"] or 0.0) if step["state"] == StepState.RUNNING else 0.0


def _job_text(job: Json) -> Text:
    if waits_for(job):
        return Text(step_text(job), style="yellow")
    if job["state"] == JobState.RUNNING:
        return Text(step_text(job), style="cyan")
    if job["state"] == JobState.SUCCEEDED and job["version"]:
        return Text(job["version"], style="green")
    if job["state"] == JobState.FAILED:
        return Text(job["error_message"] or "failed", style="red")
    return state_text(job["state"])


def _job_line(job: Json) -> str:
    if job["state"] == JobState.SUCCEEDED:
        return f"succeeded in {duration(job['seconds'])}: {job['version']}"
    if job["state"] == JobState.FAILED:
        return f"failed: {job['error_message']}"
    if waits_for(job):
        return step_text(job)
    # Without the phase: that changes often, and a line stays.
    step = step_text(job).partition(":")[0]
    return f"{job['state']}: {step}" if job["state"] == JobState.RUNNING else str(job["state"])


def waits_for(job: Json) -> str | None:
    """Why the job's waiting step cannot be taken by any worker; None where one could."""
    return next((step["waits_for"] for step in job["steps"] if step["waits_for"]), None)


def _job_count(batch: Json) -> int:
    return int(sum(batch["counts"].values()))
