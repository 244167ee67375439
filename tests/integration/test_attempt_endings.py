"""How attempts end: the row tells the truth of every ending, and nothing of a child is left."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from olivepress.database.cancelling import cancel_job
from olivepress.database.sessions import Database
from olivepress.jobs import AttemptOutcome, StepKind, StepState
from tests.doubles.orders import Order
from tests.integration.database_cases import job_of, step_of
from tests.integration.execution_cases import (
    attempts_of,
    eventually,
    forkserver,
    grandchild_of,
    is_alive,
    ordered,
    polled,
    run_step,
    running_step,
    runtime_over,
    the_attempt,
)
from workers.runtime import Runtime

MIB = 2**20
LONG_S = 60.0
CANCELLED_WITHIN_S = 2.0


@pytest.fixture(scope="module", autouse=True)
def _forkserver() -> Iterator[None]:
    with forkserver():
        yield


@pytest.fixture
def runtime(database: Database, tmp_path: Path) -> Runtime:
    return runtime_over(database, tmp_path)


def is_running(database: Database, job_id: int, line: str) -> bool:
    """Whether the step has printed this, by the log in its row."""
    return any(line in (row.log_tail or "") for row in attempts_of(database, job_id))


def test_a_success_has_its_cpu_time_memory_exit_code_and_log(runtime: Runtime, tmp_path: Path) -> None:
    database = runtime.database
    job_id = ordered(database, tmp_path, ingest=Order(seconds=2.0, allocate_bytes=200 * MIB, log_lines=300))
    run_step(runtime, job_id)
    row = the_attempt(database, job_id)
    assert (row.outcome, row.exit_code, row.signal, row.error_class) == (AttemptOutcome.SUCCEEDED, 0, None, None)
    assert row.peak_rss_bytes is not None and 200 * MIB <= row.peak_rss_bytes < 400 * MIB
    assert row.cpu_s is not None and 0 < row.cpu_s < LONG_S
    assert row.log_lines == 300
    assert row.log_tail is not None and row.log_tail.split("\n")[0] == "ingest line 101 of 300"
    assert step_of(database, job_id, StepKind.CONVERT).state == StepState.QUEUED


@pytest.mark.parametrize(
    ("ending", "outcome", "code", "number", "words"),
    [
        ("crash", AttemptOutcome.CRASHED, None, signal.SIGSEGV, "was killed by SIGSEGV (signal 11)"),
        ("killed", AttemptOutcome.CRASHED, None, signal.SIGKILL, "was killed by SIGKILL (signal 9)"),
        ("exit", AttemptOutcome.CRASHED, 3, None, "ended with exit code 3"),
        ("fail", AttemptOutcome.FAILED, 0, None, "ordered to fail; order something else"),
        ("transient", AttemptOutcome.FAILED, 0, None, "ordered to fail for once"),
        ("bug", AttemptOutcome.FAILED, 0, None, "ValueError: the double was ordered to have a bug"),
        ("memory", AttemptOutcome.OUT_OF_MEMORY, 0, None, "found no memory"),
    ],
)
def test_the_row_says_how_it_ended(
    runtime: Runtime,
    tmp_path: Path,
    ending: str,
    outcome: AttemptOutcome,
    code: int | None,
    number: int | None,
    words: str,
) -> None:
    job_id = ordered(runtime.database, tmp_path, ingest=Order(ending=ending, log_lines=3))
    run_step(runtime, job_id)
    row = the_attempt(runtime.database, job_id)
    assert (row.outcome, row.exit_code, row.signal) == (outcome, code, number)
    assert words in (row.error_message or "")
    assert "ingest line 3 of 3" in (row.log_tail or "")
    assert row.cpu_s is not None and row.cpu_s > 0
    is_final = ending == "fail"
    step = step_of(runtime.database, job_id, StepKind.INGEST)
    assert step.state == (StepState.FAILED if is_final or ending == "memory" else StepState.QUEUED)


@pytest.mark.parametrize("grandchild", [None, "session"])
def test_more_memory_than_allowed_ends_the_step_and_says_how_much_it_was(
    database: Database, tmp_path: Path, grandchild: str | None
) -> None:
    runtime = runtime_over(database, tmp_path, allowance_bytes=300 * MIB)
    order = Order(seconds=LONG_S, allocate_bytes=400 * MIB, grandchild=grandchild)
    job_id = ordered(database, tmp_path, ingest=order)
    started = time.monotonic()
    run_step(runtime, job_id)
    assert time.monotonic() - started < LONG_S / 4
    row = the_attempt(database, job_id)
    assert (row.outcome, row.signal) == (AttemptOutcome.OUT_OF_MEMORY, signal.SIGKILL)
    assert row.peak_rss_bytes is not None and row.peak_rss_bytes > 300 * MIB
    assert "ended because it used more memory than it may: it used 0." in (row.error_message or "")
    assert "of the 0.3 GiB that this worker gives a step; raise OLIVEPRESS_MEMORY" in (row.error_message or "")
    assert grandchild_of(row.log_tail) is None


def test_a_step_that_is_killed_near_its_allowance_was_out_of_memory(database: Database, tmp_path: Path) -> None:
    runtime = runtime_over(database, tmp_path, allowance_bytes=230 * MIB)
    order = Order(seconds=1.0, allocate_bytes=200 * MIB, ending="killed")
    job_id = ordered(database, tmp_path, ingest=order)
    run_step(runtime, job_id)
    row = the_attempt(database, job_id)
    assert (row.outcome, row.signal) == (AttemptOutcome.OUT_OF_MEMORY, signal.SIGKILL)
    assert "killed for want of memory" in (row.error_message or "")


def test_a_step_beyond_its_time_limit_is_ended(database: Database, tmp_path: Path) -> None:
    runtime = runtime_over(database, tmp_path, step_time_limit_s=1.0)
    job_id = ordered(database, tmp_path, ingest=Order(ending="hang", ignore_signals=True, log_lines=1))
    run_step(runtime, job_id)
    row = the_attempt(database, job_id)
    assert (row.outcome, row.signal) == (AttemptOutcome.TIME_LIMIT, signal.SIGKILL)
    assert "time limit of 1 s" in (row.error_message or "")
    assert "ingest line 1 of 1" in (row.log_tail or "")


@pytest.mark.parametrize("grandchild", ["group", "session"])
def test_a_cancelled_job_ends_with_all_that_its_step_started_within_two_seconds(
    runtime: Runtime, tmp_path: Path, grandchild: str
) -> None:
    database = runtime.database
    order = Order(seconds=LONG_S, log_lines=600, ignore_signals=True, grandchild=grandchild)
    job_id = ordered(database, tmp_path, ingest=order)
    with polled(runtime), running_step(runtime, job_id) as thread:
        eventually(lambda: is_running(database, job_id, "grandchild"))
        left_behind = grandchild_of(the_attempt(database, job_id).log_tail)
        assert left_behind is not None
        with database.write() as session:
            cancel_job(session, job_id)
        eventually(lambda: not is_alive(left_behind) and not thread.is_alive(), CANCELLED_WITHIN_S)
    row = the_attempt(database, job_id)
    assert (row.outcome, row.signal) == (AttemptOutcome.CANCELLED, signal.SIGKILL)
    assert row.cpu_s is not None and row.log_lines > 0
    assert job_of(database, job_id).state == "cancelled"


@pytest.mark.parametrize("grandchild", ["group", "session"])
def test_what_a_step_leaves_running_ends_with_it(runtime: Runtime, tmp_path: Path, grandchild: str) -> None:
    job_id = ordered(runtime.database, tmp_path, ingest=Order(grandchild=grandchild))
    run_step(runtime, job_id)
    row = the_attempt(runtime.database, job_id)
    assert (row.outcome, row.exit_code) == (AttemptOutcome.SUCCEEDED, 0)
    assert "grandchild" in (row.log_tail or "")
    assert grandchild_of(row.log_tail) is None


def test_a_killed_keeper_takes_the_step_and_its_processes_with_it(runtime: Runtime, tmp_path: Path) -> None:
    database = runtime.database
    job_id = ordered(database, tmp_path, ingest=Order(seconds=LONG_S, log_lines=600, grandchild="session"))
    with running_step(runtime, job_id):
        eventually(lambda: is_running(database, job_id, "grandchild"))
        left_behind = grandchild_of(the_attempt(database, job_id).log_tail)
        assert left_behind is not None
        step = left_behind.parent()
        assert step is not None
        keeper = step.parent()
        assert keeper is not None
        keeper.kill()
    row = the_attempt(database, job_id)
    assert (row.outcome, row.signal) == (AttemptOutcome.CRASHED, signal.SIGKILL)
    assert not is_alive(left_behind)
    assert not is_alive(step)


def test_a_worker_that_ends_hands_back_what_runs_after_the_grace(database: Database, tmp_path: Path) -> None:
    runtime = runtime_over(database, tmp_path, shutdown_grace_s=0.5)
    job_id = ordered(database, tmp_path, ingest=Order(seconds=LONG_S, log_lines=60))
    with running_step(runtime, job_id):
        eventually(lambda: is_running(database, job_id, "line 1"))
        runtime.shutdown.set()
    row = the_attempt(database, job_id)
    assert (row.outcome, row.signal) == (AttemptOutcome.SHUTDOWN, signal.SIGKILL)
    step = step_of(database, job_id, StepKind.INGEST)
    assert (step.state, step.attempts, step.worker_id) == (StepState.QUEUED, 0, None)
    run_step(runtime, job_id)
    assert len(attempts_of(database, job_id)) == 1, "a worker that ends claims nothing"


def test_the_next_attempt_runs_after_the_forkserver_was_killed(runtime: Runtime, tmp_path: Path) -> None:
    database = runtime.database
    job_id = ordered(database, tmp_path, ingest=Order(seconds=LONG_S, log_lines=60, grandchild="session"))
    with running_step(runtime, job_id):
        eventually(lambda: is_running(database, job_id, "grandchild"))
        left_behind = grandchild_of(the_attempt(database, job_id).log_tail)
        assert left_behind is not None
        ancestors = left_behind.parents()
        forkserver_process = ancestors[2]
        assert forkserver_process.parent() == psutil.Process()
        forkserver_process.kill()
    assert the_attempt(database, job_id).outcome == AttemptOutcome.CRASHED
    assert not is_alive(left_behind)
    other = ordered(database, tmp_path)
    run_step(runtime, other)
    assert the_attempt(database, other).outcome == AttemptOutcome.SUCCEEDED
