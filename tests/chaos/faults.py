"""What goes wrong: each fault happens at once and puts its repair on the agenda. All in the main thread."""

import contextlib
import heapq
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import psutil
import psycopg
from sqlalchemy import select, update

from olivepress.database.sessions import Database
from olivepress.database.tables import AttemptRow, LeaseRow, StepRow, WorkerRow
from olivepress.errors import ServiceUnavailable
from olivepress.jobs import StepState
from tests.chaos.stack import ChaosStack
from tests.doubles.services import Service

NOTHING_LEFT_WITHIN_S = 2.0
LOOK_EVERY_S = 0.1
NO_DATABASE = "the database does not answer"
STOP_WITHIN_S = 20.0


@dataclass(frozen=True)
class KilledWorker:
    """Which worker died when (seconds since 1970)."""

    worker_id: str
    at: float


@dataclass
class Faults:
    """The faults of one run, what they counted and what they found."""

    stack: ChaosStack
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    killed_workers: list[KilledWorker] = field(default_factory=list)
    left_after_s: list[float] = field(default_factory=list)
    """How long after a worker was killed the last of its processes was gone."""
    _agenda: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: "count[int]" = field(default_factory=count)
    _busy: set[str] = field(default_factory=set)

    def weights(self) -> dict[Callable[[], None], float]:
        """The faults of this stack, each with its share."""
        common: dict[Callable[[], None], float] = {
            self.kill_child: 6,
            self.kill_worker: 3,
            self.kill_scheduler: 2,
            self.kill_api: 2,
            self.kill_redis: 1.5,
            self.cut_database: 2,
            self.step_clock: 1,
            self.fill_disk: 1.5,
            self.freeze_worker: 1.5,
            self.stop_worker: 1,
        }
        return common | ({self.restart_database: 1} if self.stack.postgres else {})

    def happen(self) -> None:
        """One of them, at random."""
        weights = self.weights()
        (fault,) = self.chance.choices(list(weights), list(weights.values()))
        fault()

    def later(self, after_s: float, action: Callable[[], None]) -> None:
        """Put something on the agenda."""
        heapq.heappush(self._agenda, (time.monotonic() + after_s, next(self._numbers), action))

    def work_off(self, *, all_of_it: bool = False) -> None:
        """Do what is due, or all that is left."""
        while self._agenda and (all_of_it or self._agenda[0][0] <= time.monotonic()):
            heapq.heappop(self._agenda)[2]()

    def look_after(self) -> None:
        """Start services again that ended by themselves, as a process manager does: those that found no database."""
        for service in self.stack.services.values():
            if service.is_running or service.name in self._busy:
                continue
            if NO_DATABASE not in service.last_lines(3):
                self.problems.append(f"{service.name} ended by itself:\n{service.last_lines()}")
            self.counts["service ended: no database at its start"] += 1
            self._start_again(service, 0.5)

    def kill_child(self) -> None:
        """Kill the process of a running step: it leads a session of its own below a forkserver."""
        children = [
            process
            for worker in self.stack.named("worker")
            for process in worker.family()[1:]
            if _leads_a_session(process)
        ]
        if children:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.chance.choice(children).kill()
                self.counts["child killed"] += 1

    def kill_worker(self) -> None:
        """Kill a worker and nothing else of it; what it started must be gone soon."""
        worker = self._one_that_runs("worker")
        if worker is None:
            return
        worker_id, family, pid = self._worker_id(worker.pid), worker.family(), worker.pid
        killed_at = time.monotonic()
        worker.kill()
        if worker_id:
            self.killed_workers.append(KilledWorker(worker_id, time.time()))
        self.counts["worker killed"] += 1
        self.later(LOOK_EVERY_S, lambda: self._see_the_end_of(family, killed_at, pid))
        self._start_again(worker, self.chance.uniform(0, 1.5 * self.stack.lease_s))

    def kill_scheduler(self) -> None:
        """Kill a scheduler, perhaps the one that leads."""
        self._kill("scheduler", 3.0)

    def kill_api(self) -> None:
        """Kill the API."""
        self._kill("api", 2.0)

    def kill_redis(self) -> None:
        """Kill Redis and wipe its data; a new one starts on the same address."""
        redis = self.stack.redis
        if not self._begin("redis"):
            return
        redis.kill()
        redis.wipe()
        self.counts["redis killed and wiped"] += 1
        self._repair("redis", self.chance.uniform(0.1, 2.0), redis.start)

    def cut_database(self) -> None:
        """PostgreSQL: end connections on the server's side. SQLite: somebody else writes for seconds."""
        if self.stack.postgres:
            self._cut_connections()
        elif "frozen" not in self._busy and self._begin("database"):
            path = self.stack.database.engine.url.database or ""
            lock = sqlite3.connect(path, timeout=20, isolation_level=None)
            lock.execute("BEGIN IMMEDIATE")
            self.counts["database locked for seconds"] += 1
            self._repair("database", self.chance.uniform(0.5, 4.0), lock.close)

    def restart_database(self) -> None:
        """Stop PostgreSQL, in order or as a crash does, and start it again after a while."""
        postgres = self.stack.postgres
        assert postgres is not None
        if self._begin("database"):
            postgres.stop(immediate=self.chance.random() < 0.5)
            self.counts["database restarted"] += 1
            self._repair("database", self.chance.uniform(0.2, 4.0), postgres.start)

    def step_clock(self) -> None:
        """The database's clock steps: all times that it gave move against it."""
        by_s = self.chance.uniform(-2, 2) * self.stack.lease_s
        if self.stack.postgres is None and self._busy & {"database", "frozen"}:
            # Whoever holds SQLite's lock waits for this very thread to let it go (on).
            return
        with contextlib.suppress(ServiceUnavailable), self.stack.database.write() as session:
            for column in (StepRow.lease_expires_at, StepRow.signaled_at, WorkerRow.seen_at, LeaseRow.expires_at):
                session.execute(update(column.class_).where(column.is_not(None)).values({column: column - by_s}))
            waiting = StepRow.state == StepState.QUEUED
            session.execute(update(StepRow).where(waiting).values(run_at=StepRow.run_at - by_s))
            self.counts["clock stepped forward" if by_s > 0 else "clock stepped back"] += 1

    def fill_disk(self) -> None:
        """No room is left in the store for a while."""
        if not self._begin("disk"):
            return
        self.counts["disk full"] += 1
        after_s = self.chance.uniform(0.5, 3.0)
        if not self.stack.is_small_disk:
            self.stack.full_flag.touch()
            self._repair("disk", after_s, self.stack.full_flag.unlink)
            return
        filler = self.stack.store.root / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 65536)
        self._repair("disk", after_s, filler.unlink)

    def freeze_worker(self) -> None:
        """Stop a worker's process past its lease, and let it go on: what it has to say then must be void."""
        worker = self._one_that_runs("worker")
        if worker is None or not self._begin("frozen"):
            return
        self._busy.add(worker.name)
        worker.signal(signal.SIGSTOP)
        self.counts["worker frozen past its lease"] += 1
        after_s = self.stack.lease_s * self.chance.uniform(1.1, 2.0)
        self._repair(worker.name, after_s, lambda: worker.signal(signal.SIGCONT))
        self._repair("frozen", after_s, lambda: None)

    def stop_worker(self) -> None:
        """Ask a worker to end, as an administrator does; it must do so by itself."""
        worker = self._one_that_runs("worker")
        if worker is not None and self._begin(worker.name):
            worker.signal(signal.SIGTERM)
            self.counts["worker stopped in order"] += 1
            self.later(LOOK_EVERY_S, lambda: self._see_the_end_of_service(worker, time.monotonic() + STOP_WITHIN_S))

    def _kill(self, kind: str, at_most_s: float) -> None:
        service = self._one_that_runs(kind)
        if service is not None:
            service.kill()
            self.counts[f"{kind} killed"] += 1
            self._start_again(service, self.chance.uniform(0.1, at_most_s))

    def _one_that_runs(self, kind: str) -> Service | None:
        running = [each for each in self.stack.named(kind) if each.is_running and each.name not in self._busy]
        return self.chance.choice(running) if running else None

    def _start_again(self, service: Service, after_s: float) -> None:
        self._begin(service.name)
        self._repair(service.name, after_s, service.start)

    def _begin(self, part: str) -> bool:
        """Whether the part works now and may have its fault; one at a time."""
        if part in self._busy:
            return False
        self._busy.add(part)
        return True

    def _repair(self, part: str, after_s: float, action: Callable[[], object]) -> None:
        """Put the end of a part's fault on the agenda."""

        def repair() -> None:
            action()
            self._busy.discard(part)

        self.later(after_s, repair)

    def _see_the_end_of_service(self, worker: Service, deadline: float) -> None:
        """Look until a worker that was asked to end has ended, and start it again."""
        if worker.is_running and time.monotonic() < deadline:
            self.later(LOOK_EVERY_S, lambda: self._see_the_end_of_service(worker, deadline))
            return
        code = worker.ended() if not worker.is_running else None
        if not worker.has_ended_well(code):
            self.problems.append(f"{worker.name} ended with {code} when it was asked to stop:\n{worker.last_lines()}")
            worker.kill()
        self._repair(worker.name, self.chance.uniform(0, 2.0), worker.start)

    def _worker_id(self, pid: int) -> str | None:
        with contextlib.suppress(ServiceUnavailable), self.stack.database.read() as session:
            return session.scalar(select(WorkerRow.id).where(WorkerRow.pid == pid, WorkerRow.stopped_at.is_(None)))
        return None

    def _see_the_end_of(self, family: list[psutil.Process], killed_at: float, pid: int) -> None:
        """Look until all of a killed worker's processes are gone; too late is a problem."""
        left = [process for process in family if _lives(process)]
        spent = time.monotonic() - killed_at
        if not left:
            self.left_after_s.append(spent)
        elif spent > NOTHING_LEFT_WITHIN_S:
            self.problems.append(f"{spent:.1f} s after worker {pid} was killed there live {[p.pid for p in left]}")
        else:
            self.later(LOOK_EVERY_S, lambda: self._see_the_end_of(family, killed_at, pid))

    def _cut_connections(self) -> None:
        assert self.stack.postgres is not None
        share = self.chance.choice((0.3, 1.0))
        # The share is rolled for each connection on the server.
        statement = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = 'chaos' AND pid <> pg_backend_pid() AND random() < %s"
        )
        url = self.stack.postgres.url().replace("+psycopg", "")
        with contextlib.suppress(psycopg.Error), psycopg.connect(url, autocommit=True, connect_timeout=2) as connection:
            row = connection.execute(statement, [share]).fetchone()
            self.counts["database connections cut"] += row[0] if row else 0


def rescue_times(database: Database, killed: list[KilledWorker]) -> list[float]:
    """Seconds from each kill of a worker to each of its steps running again."""
    times = []
    with database.read() as session:
        for each in killed:
            held = select(AttemptRow).where(AttemptRow.worker_id == each.worker_id, AttemptRow.outcome == "lease_lost")
            for attempt in session.scalars(held).all():
                after = (AttemptRow.step_id == attempt.step_id) & (AttemptRow.fence == attempt.fence + 1)
                started = session.scalar(select(AttemptRow.started_at).where(after))
                if started is not None and attempt.started_at <= each.at:
                    times.append(started - each.at)
    return times


def _leads_a_session(process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
