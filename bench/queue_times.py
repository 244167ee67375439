"""What the queue costs, over a real stack whose steps are doubles that do nothing: latencies and throughput.

    python bench/queue_times.py [--database sqlite|postgresql] [--rounds 50] [--jobs 10000] [--skip-lease]

submit to running    from before the HTTP request to the claim of the job's first step, as the database has it
step to step         from the end of a step to the claim of the next one of the same job
batch                a batch of many jobs: accepted over HTTP, and by the use case alone; its first step; another team's
                     single job that is submitted right after it
cancel               from the request to the end of the running step's process
rescue               from a kill -9 of the worker to its step running again: by a worker that starts on the same host,
                     and by the lease (60 s) where none does and another host has a worker
"""

import argparse
import itertools
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import func, select

from olivepress.client import Client
from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database
from olivepress.database.tables import AttemptRow, JobRow, StepRow
from olivepress.jobs import FINAL_JOB_STATES, StepKind
from olivepress.manifest import parse_manifest
from olivepress.submission import submit
from tests.doubles.orders import Order, Orders, write_checkpoint
from tests.doubles.services import ADMIN_KEY, Service, double, environment, product, wait_for_api
from tests.postgres import postgres_server
from tests.redis_server import free_port, redis_server

IN_TIME_S = 120.0
LOOK_EVERY_S = 0.005


@dataclass
class Bench:
    """A running stack with one worker."""

    database: Database
    client: Client
    checkpoints: Path
    services: dict[str, Service]
    numbers: Iterator[int]

    def checkpoint(self, orders: Orders | None = None) -> str:
        """The path of a new one."""
        number = next(self.numbers)
        return str(write_checkpoint(self.checkpoints / f"model-{number}", number, orders))

    def submit(self, *paths: str, **manifest: str) -> dict[str, list[int]]:
        """Submit a batch over HTTP."""
        values = {"checkpoints": [{"path": path} for path in paths], **manifest}
        return self.client.submit(parse_manifest(values))

    def attempt(self, job_id: int, kind: StepKind, fence: int = 1) -> AttemptRow | None:
        """An attempt, once it is there."""
        query = select(AttemptRow).join(StepRow, StepRow.id == AttemptRow.step_id)
        query = query.where(StepRow.job_id == job_id, StepRow.kind == kind, AttemptRow.fence == fence)
        with self.database.read() as session:
            return session.scalar(query)

    def started(self, job_id: int, kind: StepKind = StepKind.INGEST, fence: int = 1) -> float:
        """When a step of a job began to run (seconds since 1970); waits for it."""
        found = wait_for(lambda: self.attempt(job_id, kind, fence))
        return found.started_at

    def finish(self, job_id: int) -> None:
        """Wait for the end of a job."""
        wait_for(lambda: self._state(job_id) in FINAL_JOB_STATES)

    def child(self) -> psutil.Process:
        """The process of the one running step."""
        return wait_for(lambda: next(iter(children(self.services["worker"])), None))

    def _state(self, job_id: int) -> str:
        with self.database.read() as session:
            return session.get_one(JobRow, job_id).state


def wait_for[T](look: Callable[[], T | None], within_s: float = IN_TIME_S) -> T:  # type: ignore[valid-type]
    """What `look` finds."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        if time.monotonic() > deadline:
            sys.exit(f"not within {within_s:.0f} s: look into the services' logs")
        time.sleep(LOOK_EVERY_S)
    return found
