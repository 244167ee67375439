"""Attempts as in a worker, in this process: real claims, leases, children and store, doubles of the toolchain."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from redis import Redis
from sqlalchemy import select

from olivepress.database.sessions import Database
from olivepress.database.tables import AttemptRow, StepRow
from olivepress.jobs import StepId, StepKind
from olivepress.queues import Ring
from olivepress.settings import Settings
from olivepress.store import DirectoryStore
from tests.doubles.orders import Order, Orders, write_checkpoint
from tests.integration.database_cases import OFFER, step_of, submit_paths
from workers import attempt
from workers.child import StepCode
from workers.child_process import start_forkserver
from workers.memory_allowance import MemoryAllowance
from workers.runtime import Runtime, watch_database

DOUBLES = StepCode("tests.doubles.steps", "tests.doubles.preload")
WITHIN_S = 20.0


class SilentRing(Ring):
    """Rings for nobody: no scheduler listens in these tests."""

    def __call__(self) -> None:
        """Nothing."""


@contextmanager
def forkserver() -> Iterator[None]:
    """A forkserver with the doubles, as a worker starts it; this process's environment stays what it was."""
    before = dict(os.environ)
    start_forkserver(DOUBLES)
    os.environ.clear()
    os.environ.update(before)
    yield


def runtime_over(database: Database, directory: Path, *, allowance_bytes: int = 2**40, **settings: object) -> Runtime:
    """A worker's runtime in this directory, which claims any step and holds it to the allowance."""
    return Runtime(
        settings=Settings(data_dir=directory, **settings),  # type: ignore[arg-type]
        database=database,
        store=DirectoryStore(directory / "store"),
        ring=SilentRing(Redis()),
        offer=OFFER,
        workspaces=directory / "workspaces",
        code=DOUBLES,
        memory=MemoryAllowance(allowance_bytes),
    )


@contextmanager
def polled(runtime: Runtime) -> Iterator[None]:
    """With the worker's thread that polls for cancelled jobs."""
    stop = threading.Event()
    thread = threading.Thread(target=watch_database, args=(runtime, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def ordered(database: Database, directory: Path, **orders: Order) -> int:
    """A submitted job over a double of a checkpoint that gives these orders; its id."""
    checkpoint = write_checkpoint(directory / f"checkpoint-{time.monotonic_ns()}", 1, Orders(orders))
    (job_id,) = submit_paths(database, str(checkpoint))
    return job_id


def run_step(runtime: Runtime, job_id: int, kind: StepKind = StepKind.INGEST) -> None:
    """One attempt at a step of a job, in this thread."""
    attempt.run(StepId(step_of(runtime.database, job_id, kind).id), runtime)


@contextmanager
def running_step(runtime: Runtime, job_id: int, kind: StepKind = StepKind.INGEST) -> Iterator[threading.Thread]:
    """An attempt in a thread of its own, as in a worker; waited for at the end."""
    thread = threading.Thread(target=run_step, args=(runtime, job_id, kind))
    thread.start()
    try:
        yield thread
    finally:
        thread.join(2 * WITHIN_S)
        assert not thread.is_alive(), "the attempt did not end"


def attempts_of(database: Database, job_id: int, kind: StepKind = StepKind.INGEST) -> list[AttemptRow]:
    """The rows of a step's attempts, oldest first."""
    with database.read() as session:
        query = select(AttemptRow).join(StepRow, StepRow.id == AttemptRow.step_id)
        query = query.where(StepRow.job_id == job_id, StepRow.kind == kind).order_by(AttemptRow.id)
        return list(session.scalars(query))


def the_attempt(database: Database, job_id: int, kind: StepKind = StepKind.INGEST) -> AttemptRow:
    """The row of the only attempt at a step."""
    (row,) = attempts_of(database, job_id, kind)
    return row


def eventually(holds: Callable[[], object], within_s: float = WITHIN_S, every_s: float = 0.02) -> float:
    """Look until it holds; gives the seconds it took.

    Raises:
        AssertionError: it did not in time.
    """
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < within_s, f"not within {within_s} s"
        time.sleep(every_s)
    return time.monotonic() - started


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def grandchild_of(log: str | None) -> psutil.Process | None:
    """The process that a double said it started, if it still runs."""
    for line in (log or "").split("\n"):
        if line.startswith("grandchild "):
            try:
                process = psutil.Process(int(line.split()[1]))
            except psutil.NoSuchProcess:
                return None
            return process if is_alive(process) else None
    return None
