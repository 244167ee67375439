"""Two schedulers: one leads, and when it is killed the other takes over within the lease."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from olivepress.database import views
from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database
from scheduler.leader import LEASE_S
from tests.redis_server import redis_server
from tests.stack_cases import wait_until


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'olivepress.sqlite'}")
    upgrade(database)
    yield database
    database.dispose()


def leader_of(database: Database) -> int | None:
    """The process id of the scheduler that leads."""
    with database.read() as session:
        lease = views.scheduler_lease(session)
    return int(lease["holder"].split("-")[-2]) if lease["alive"] else None


def wait_for_leader(database: Database, besides: int | None = None) -> int:
    """The process id of a leader, other than the given one."""

    def other() -> bool:
        return leader_of(database) not in (None, besides)

    wait_until(other, 30)
    leader = leader_of(database)
    assert leader is not None
    return leader


def test_when_the_leader_is_killed_the_other_leads_within_the_lease(database: Database, tmp_path: Path) -> None:
    with ExitStack() as closing:
        redis = closing.enter_context(redis_server(tmp_path / "redis"))
        environment = os.environ | {"OLIVEPRESS_DATA_DIR": str(tmp_path), "OLIVEPRESS_REDIS_URL": redis.url}
        command = [sys.executable, "-m", "olivepress", "service", "scheduler"]
        with (tmp_path / "schedulers.log").open("wb") as log:
            both = [subprocess.Popen(command, env=environment, stderr=log) for _ in range(2)]
        for process in both:
            closing.callback(process.wait)
            closing.callback(process.kill)
        first = wait_for_leader(database)
        wait_until(lambda: (tmp_path / "schedulers.log").read_text().count("scheduler_started") == 2, 30)
        os.kill(first, signal.SIGKILL)
        killed_at = time.monotonic()
        assert wait_for_leader(database, besides=first) in {process.pid for process in both} - {first}
        # The other looks every second.
        assert time.monotonic() - killed_at < LEASE_S + 3


def test_a_leader_that_is_asked_to_stop_hands_over_at_once(database: Database, tmp_path: Path) -> None:
    with ExitStack() as closing:
        redis = closing.enter_context(redis_server(tmp_path / "redis"))
        environment = os.environ | {"OLIVEPRESS_DATA_DIR": str(tmp_path), "OLIVEPRESS_REDIS_URL": redis.url}
        process = subprocess.Popen(
            [sys.executable, "-m", "olivepress", "service", "scheduler"], env=environment, stderr=subprocess.DEVNULL
        )
        closing.callback(process.wait)
        closing.callback(process.kill)
        assert wait_for_leader(database) == process.pid
        process.terminate()
        assert process.wait(15) == 0
        assert leader_of(database) is None
