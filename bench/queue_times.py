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
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
from sqlalchemy import select

from olivepress.client import Client
from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database
from olivepress.database.tables import AttemptRow, JobRow, StepRow
from olivepress.jobs import FINAL_JOB_STATES, JobKind, StepKind
from olivepress.manifest import Manifest, parse_manifest
from olivepress.recipes.recipe import BUILT_IN, DEFAULT_RECIPE
from olivepress.steps import plan
from olivepress.submission import submit
from tests.doubles.orders import Order, Orders, write_checkpoint
from tests.doubles.services import ADMIN_KEY, Service, double, environment, product, wait_for_api
from tests.postgres import postgres_server
from tests.redis_server import free_port, redis_server

T = TypeVar("T")
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

    def submit(self, *paths: str, **manifest: Any) -> dict[str, Any]:
        """Submit a batch over HTTP."""
        return self.client.submit(manifest_of(list(paths), **manifest))

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

    def child(self, job_id: int) -> psutil.Process:
        """The process of a job's convert, once it runs."""
        self.started(job_id, StepKind.CONVERT)
        return wait_for(lambda: next(iter(children(self.services["worker"])), None))

    def job_with(self, **order: Any) -> int:
        """A job whose convert does this."""
        job_id: int = self.submit(self.checkpoint(Orders({"convert": Order(**order)})))["jobs"][0]
        return job_id

    def _state(self, job_id: int) -> str:
        with self.database.read() as session:
            return session.get_one(JobRow, job_id).state


def wait_for(look: Callable[[], T | None], within_s: float = IN_TIME_S) -> T:
    """What `look` finds."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        if time.monotonic() > deadline:
            sys.exit(f"not within {within_s:.0f} s: look into the services' logs")
        time.sleep(LOOK_EVERY_S)
    return found


def manifest_of(paths: list[str], **manifest: Any) -> Manifest:
    """A batch of these checkpoints."""
    return parse_manifest({"checkpoints": [{"path": path} for path in paths], **manifest})


def children(worker: Service) -> list[psutil.Process]:
    """The processes of a worker's running steps: each leads a session of its own."""
    found = []
    for process in worker.family()[1:]:
        with suppress(ProcessLookupError):
            if os.getsid(process.pid) == process.pid:
                found.append(process)
    return found


@contextmanager
def stack(directory: Path, kind: str) -> Iterator[Bench]:
    """API, scheduler and one worker of two slots, as in production but for the doubles."""
    with ExitStack() as closing:
        redis = closing.enter_context(redis_server(directory / "redis"))
        url = f"sqlite:///{directory / 'olivepress.sqlite'}"
        if kind == "postgresql":
            server = closing.enter_context(postgres_server(directory / "postgres"))
            server.configure({"fsync": "on", "full_page_writes": "on"})
            server.stop()
            server.start()
            url = server.create_database("bench")
        database = Database(url)
        closing.callback(database.dispose)
        upgrade(database)
        port, checkpoints = free_port(), directory / "checkpoints"
        variables = environment(directory / "data", url, redis.url, checkpoints, api_port=str(port), slots="2")
        commands = {"api": product("api"), "scheduler": product("scheduler"), "worker": double("worker")}
        services = {
            name: Service(name, command, variables, directory / f"{name}.log") for name, command in commands.items()
        }
        for service in services.values():
            service.start()
            closing.callback(service.stop)
        wait_for_api(f"http://127.0.0.1:{port}", services["api"])
        client = closing.enter_context(Client(f"http://127.0.0.1:{port}", ADMIN_KEY))
        bench = Bench(database, client, checkpoints, services, itertools.count(1))
        # The first job finds everything warm but itself.
        bench.finish(bench.job_with())
        yield bench


def latencies(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Submit to running, and step to step, one job after another."""
    to_running, accepted, between = [], [], []
    for _ in range(rounds):
        path = bench.checkpoint()
        sent = time.time()
        job_id = bench.submit(path)["jobs"][0]
        accepted.append(time.time() - sent)
        to_running.append(bench.started(job_id) - sent)
        bench.finish(job_id)
        between += _between(bench, job_id)
    return {"HTTP request": accepted, "submit to running": to_running, "step to step": between}


def _between(bench: Bench, job_id: int) -> Iterator[float]:
    attempts = [bench.attempt(job_id, kind) for kind in plan(JobKind.CONVERT, BUILT_IN[DEFAULT_RECIPE])]
    for before, after in itertools.pairwise(attempts):
        if before and after and before.finished_at:
            yield after.started_at - before.finished_at


def large_batch(bench: Bench, count: int) -> dict[str, list[float]]:
    """A batch of many, and another team's single job right after it."""
    paths = [bench.checkpoint() for _ in range(count)]
    manifest = manifest_of(paths, team="many")
    started = time.monotonic()
    submit(bench.database, manifest, [bench.checkpoints])
    alone = time.monotonic() - started
    _cancel_all(bench)
    sent = time.time()
    batch = bench.client.submit(manifest)
    accepted = time.time() - sent
    single_sent = time.time()
    single = bench.submit(bench.checkpoint(), team="few")["jobs"][0]
    single_started = bench.started(single) - single_sent
    first = min(_first_starts(bench, batch["jobs"])) - sent
    cancelled = _cancel_all(bench)
    return {
        f"{count} jobs, use case": [alone],
        f"{count} jobs, HTTP": [accepted],
        "their first step": [first],
        "another team's job": [single_started],
        "cancel of all": [cancelled],
    }


def _first_starts(bench: Bench, job_ids: list[int]) -> list[float]:
    query = select(StepRow.started_at).where(StepRow.started_at.is_not(None), StepRow.job_id >= min(job_ids))

    def look() -> list[float]:
        with bench.database.read() as session:
            return [started for started in session.scalars(query) if started is not None]

    return wait_for(look)


def _cancel_all(bench: Bench) -> float:
    """Seconds that the request to cancel the newest large batch took; returns when none of its steps runs."""
    batch_id = bench.client.batches(team="many", limit=1)[0]["id"]
    started = time.monotonic()
    bench.client.cancel_batch(batch_id)
    spent = time.monotonic() - started
    running = select(JobRow.id).where(JobRow.batch_id == batch_id, JobRow.state.not_in(FINAL_JOB_STATES)).limit(1)

    def is_over() -> bool:
        with bench.database.read() as session:
            return session.scalar(running) is None

    wait_for(is_over)
    return spent


def cancels(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """From the request to the end of the process."""
    times = []
    for _ in range(rounds):
        job_id = bench.job_with(seconds=60.0, ignore_signals=True)
        child = bench.child(job_id)
        started = time.monotonic()
        bench.client.cancel_job(job_id)
        wait_for(lambda process=child: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)  # type: ignore[misc]
        times.append(time.monotonic() - started)
        bench.finish(job_id)
    return {"cancel": times}


def rescues(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """After a kill -9, by the next worker on the same host."""
    times = []
    for _ in range(rounds):
        job_id = bench.job_with(seconds=3.0)
        bench.child(job_id)
        killed = time.time()
        bench.services["worker"].kill()
        bench.services["worker"].start()
        times.append(bench.started(job_id, StepKind.CONVERT, 2) - killed)
        bench.finish(job_id)
    return {"rescue, worker restarted": times}


def rescue_by_lease(bench: Bench) -> dict[str, list[float]]:
    """After a kill -9, by a worker under another host's name when the lease has run out."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return {"rescue, by the lease": []}
    job_id = bench.job_with(seconds=3.0)
    bench.child(job_id)
    worker = bench.services["worker"]
    renamed = ["unshare", "--uts", "sh", "-c", 'hostname other && exec "$@"', "sh", *worker.command]
    other = Service("other", renamed, worker.environment, worker.log_file.with_name("other.log"))
    killed = time.time()
    worker.kill()
    other.start()
    try:
        return {"rescue, by the lease": [bench.started(job_id, StepKind.CONVERT, 2) - killed]}
    finally:
        other.stop()


def print_lines(figures: dict[str, list[float]]) -> None:
    """Median, 95th percentile and largest, in milliseconds."""
    for name, times in figures.items():
        ordered = sorted(times)
        if not ordered:
            print(f"  {name:<28}{'-':>10}")  # noqa: T201
            continue
        p95 = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
        shown = [f"{1000 * value:>7.0f} ms" for value in (statistics.median(ordered), p95, ordered[-1])]
        print(f"  {name:<28}{''.join(shown)}   {len(ordered)}", flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], help="only this one")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--skip-lease", action="store_true", help="do not wait a minute for a lease to run out")
    chosen = parser.parse_args()
    for kind in [chosen.database] if chosen.database else ["sqlite", "postgresql"]:
        with tempfile.TemporaryDirectory(prefix="olivepress-bench-") as place:
            Path(place).chmod(0o755)
            with stack(Path(place), kind) as bench:
                print(f"{kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)  # noqa: T201
                print(f"  {'':<28}{'median':>10}{'p95':>10}{'most':>10}   n")  # noqa: T201
                print_lines(latencies(bench, chosen.rounds))
                print_lines(cancels(bench, max(3, chosen.rounds // 5)))
                print_lines(rescues(bench, max(2, chosen.rounds // 10)))
                print_lines(large_batch(bench, chosen.jobs))
                if not chosen.skip_lease:
                    print_lines(rescue_by_lease(bench))


if __name__ == "__main__":
    main()
