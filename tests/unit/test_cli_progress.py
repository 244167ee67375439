"""Following a batch: bars, lines, outages, large batches."""

from io import StringIO

import httpx
import pytest
from rich.console import Console

from olivepress.cli import progress
from olivepress.cli.progress import bars, done_share, summary_text, watch_batch
from olivepress.errors import ServiceUnavailable
from olivepress.jobs import JobState
from tests.unit.cli_cases import FakeApi, batch_of, job_of, step_of


def console_of(*, is_terminal: bool) -> tuple[Console, StringIO]:
    out = StringIO()
    return Console(file=out, width=100, height=40, force_terminal=is_terminal, color_system=None), out


def no_wait(seconds: float) -> None:
    assert seconds > 0


RUNNING = job_of(1, JobState.RUNNING, steps=[step_of("ingest", "succeeded"), step_of("convert", "running", share=0.5)])


def test_the_batch_is_given_as_it_is_when_it_is_over() -> None:
    api = FakeApi(batch_of(RUNNING), batch_of(RUNNING), batch_of(job_of(1)))
    console, _ = console_of(is_terminal=False)

    batch = watch_batch(api.client(), 7, console, no_wait)

    assert batch == batch_of(job_of(1))


def test_without_a_terminal_each_change_is_one_line() -> None:
    failed = job_of(2, JobState.FAILED, error_message="ingest: no weights; copy the whole folder")
    looks = [batch_of(RUNNING, job_of(2, JobState.QUEUED))] * 4 + [batch_of(job_of(1), failed)]
    console, out = console_of(is_terminal=False)

    watch_batch(FakeApi(*looks).client(), 7, console, no_wait)

    assert out.getvalue().splitlines() == [
        "job 1  support-1  cpu-int4  running: convert",
        "job 2  support-2  cpu-int4  queued",
        "batch 7: 0 of 2 done, 1 running",
        "job 1  support-1  cpu-int4  succeeded in 5.0 s: support-1-int4:1",
        "job 2  support-2  cpu-int4  failed: ingest: no weights; copy the whole folder",
        "batch 7: 2 of 2 done, 1 failed",
    ]


def test_on_a_terminal_the_last_picture_shows_every_job_and_its_time() -> None:
    console, out = console_of(is_terminal=True)

    watch_batch(FakeApi(batch_of(RUNNING), batch_of(job_of(1))).client(), 7, console, no_wait)

    last = out.getvalue().rpartition("batch 7:")[2]
    assert "1 of 1 done" in last
    assert "support-1-int4:1" in last
    assert "5.0 s" in last


def test_of_a_large_batch_only_the_running_jobs_are_asked_for_until_the_end() -> None:
    queued = [job_of(number, JobState.QUEUED) for number in range(2, 50)]
    done = batch_of(*(job_of(number) for number in range(1, 50)))
    api = FakeApi(batch_of(RUNNING, *queued), batch_of(RUNNING, *queued), done)
    console, out = console_of(is_terminal=False)

    batch = watch_batch(api.client(), 7, console, no_wait)

    assert len(batch["jobs"]) == 49
    assert [url.params.get("state") for url in api.asked] == ["running", "running", "running", None]
    assert out.getvalue().splitlines() == ["batch 7: 0 of 49 done, 1 running", "batch 7: 49 of 49 done"]


def test_bars_of_a_large_batch_are_those_of_the_running_jobs() -> None:
    batch = batch_of(RUNNING, *(job_of(number, JobState.QUEUED) for number in range(2, 50)))
    console, out = console_of(is_terminal=True)

    console.print(bars(batch))

    assert "support-1 " in out.getvalue()
    assert "support-2" not in out.getvalue()


def test_a_restart_of_the_api_is_waited_for() -> None:
    api = FakeApi(batch_of(RUNNING), batch_of(RUNNING), httpx.ConnectError, httpx.ConnectError, batch_of(job_of(1)))
    console, out = console_of(is_terminal=False)

    batch = watch_batch(api.client(), 7, console, no_wait)

    assert batch["state"] == "succeeded"
    assert out.getvalue().count("nothing answers at http://127.0.0.1:8720") == 1


def test_an_api_that_stays_away_ends_the_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "OUTAGE_LIMIT_S", -1.0)
    api = FakeApi(batch_of(RUNNING), batch_of(RUNNING), httpx.ConnectError)
    console, _ = console_of(is_terminal=False)

    with pytest.raises(ServiceUnavailable):
        watch_batch(api.client(), 7, console, no_wait)


def test_a_running_step_counts_by_its_share() -> None:
    steps = [
        step_of("ingest", "succeeded"),
        step_of("convert", "running", share=0.5),
        step_of("package", "blocked"),
        step_of("validate", "blocked"),
        step_of("publish", "blocked"),
    ]

    assert done_share(job_of(1, JobState.RUNNING, steps=steps)) == pytest.approx(0.3)


def test_the_summary_counts_what_is_over_and_what_failed() -> None:
    batch = batch_of(
        job_of(1), job_of(2, JobState.FAILED), job_of(3, JobState.CANCELLED), job_of(4, JobState.QUEUED), name="bots"
    )

    assert summary_text(batch) == "batch 7 bots: 3 of 4 done, 1 failed, 1 cancelled"
