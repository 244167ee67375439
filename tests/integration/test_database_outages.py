"""What a caller sees when PostgreSQL stops, restarts, cuts a connection or is behind a dead network."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from olivepress.database import sessions, steps
from olivepress.database.sessions import Database
from olivepress.database.tables import BatchRow, JobRow
from olivepress.errors import ServiceUnavailable
from olivepress.jobs import StepKind
from tests.integration.database_cases import POSTGRESQL, claimed, on_both_databases, submit_paths
from tests.postgres import PostgresServer, postgres_server

on_postgresql = pytest.mark.parametrize("database_kind", [POSTGRESQL], indirect=True)
# What sessions.py promises, and room for a busy machine.
WITHIN_S = 10.0 + 5.0


def one(database: Database) -> int:
    with database.read() as session:
        return session.scalars(text("SELECT 1")).one()  # type: ignore[arg-type]


@contextmanager
def far_host() -> Iterator[tuple[str, list[str], Callable[[], object]]]:
    """Another host, as far as the network goes: a namespace with one cable to this one.

    Gives this host's address at the cable, what to put before a command to run it there, and what cuts the cable.
    """
    name = f"olive{os.getpid()}"
    here, there = f"{name}a", f"{name}b"
    subnet = f"10.213.{os.getpid() % 250}"

    def ip(*arguments: str, check: bool = True) -> None:
        subprocess.run(["ip", *arguments], check=check, capture_output=True)

    try:
        ip("netns", "add", name)
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        ip("addr", "add", f"{subnet}.1/30", "dev", here)
        ip("-n", name, "addr", "add", f"{subnet}.2/30", "dev", there)
        ip("link", "set", here, "up")
        ip("-n", name, "link", "set", there, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        if shutil.which("ip"):
            ip("netns", "delete", name, check=False)
        pytest.skip(f"network namespaces cannot be made here: {error}")
    try:
        yield f"{subnet}.1", ["ip", "netns", "exec", name], lambda: ip("link", "set", here, "down")
    finally:
        ip("link", "delete", here)
        ip("netns", "delete", name)


# Asks once, waits for a line, then asks twice more and says how long it took to be told of the outage.
FAR_CLIENT = """
import sys, time
from sqlalchemy import text
from olivepress.database.sessions import Database
from olivepress.errors import ServiceUnavailable
database = Database(sys.argv[1])
def ask():
    with database.read() as session:
        session.execute(text("SELECT 1"))
ask()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(2):
    started = time.monotonic()
    try:
        ask()
    except ServiceUnavailable:
        print(time.monotonic() - started, flush=True)
"""


@on_postgresql
def test_a_restart_of_the_server_is_an_outage_and_then_everything_goes_on(
    database: Database, postgres: PostgresServer
) -> None:
    (job,) = submit_paths(database, "/models/a")
    held = claimed(database, job, StepKind.INGEST)
    postgres.stop()
    try:
        for _ in range(2):
            with (
                pytest.raises(ServiceUnavailable, match="see that it runs and is reachable"),
                database.write() as session,
            ):
                steps.heartbeat(session, held, None, None)
        with pytest.raises(ServiceUnavailable):
            one(database)
    finally:
        postgres.start()
    with database.write() as session:
        assert steps.heartbeat(session, held, None, None)


@on_postgresql
def test_many_connections_of_the_pool_that_died_with_the_server_are_no_error_afterwards(
    database: Database, postgres: PostgresServer
) -> None:
    held = [database.engine.connect() for _ in range(5)]
    for connection in held:
        connection.close()
    postgres.stop(immediate=True)
    postgres.start()
    assert [one(database) for _ in range(6)] == [1] * 6


@on_postgresql
def test_a_transaction_whose_connection_is_cut_is_an_outage_and_nothing_of_it_is_kept(
    database: Database, database_url: str
) -> None:
    (job,) = submit_paths(database, "/models/a")
    with pytest.raises(ServiceUnavailable, match="terminating connection"), database.write() as session:
        session.execute(update(JobRow).values(model_name="half"))
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        session.execute(update(JobRow).values(alias="half"))
    with database.read() as session:
        row = session.get_one(JobRow, job)
        assert (row.model_name, row.alias) == ("a-int4", "latest")


@on_postgresql
def test_of_a_deadlock_one_goes_on_and_the_other_is_told_to_try_again(database: Database) -> None:
    first, second = submit_paths(database, "/models/a", "/models/b")
    both_hold, told = threading.Barrier(2), list[ServiceUnavailable]()

    def change(mine: int, yours: int) -> None:
        try:
            with database.write() as session:
                session.execute(update(JobRow).where(JobRow.id == mine).values(alias="x"))
                both_hold.wait()
                session.execute(update(JobRow).where(JobRow.id == yours).values(alias="x"))
        except ServiceUnavailable as error:
            told.append(error)

    threads = [threading.Thread(target=change, args=pair) for pair in ((first, second), (second, first))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ["deadlock" in str(error) for error in told] == [True]
    with database.read() as session:
        assert set(session.scalars(select(JobRow.alias))) == {"x"}


@on_postgresql
def test_a_row_that_stays_locked_is_an_outage_after_a_bounded_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_paths(database, "/models/a")
    monkeypatch.setitem(sessions.POSTGRESQL_SESSION, "lock_timeout", "200")
    other = Database(database.engine.url.render_as_string(hide_password=False))
    with database.write() as holder:
        holder.execute(update(JobRow).values(alias="held"))
        with pytest.raises(ServiceUnavailable, match="lock timeout"), other.write() as session:
            session.execute(update(JobRow).values(alias="wanted"))
    other.dispose()


@on_postgresql
def test_a_session_that_is_idle_in_a_transaction_loses_its_locks(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_paths(database, "/models/a")
    monkeypatch.setitem(sessions.POSTGRESQL_SESSION, "idle_in_transaction_session_timeout", "200")
    lost = Database(database.engine.url.render_as_string(hide_password=False))
    with pytest.raises(ServiceUnavailable), lost.write() as silent:
        silent.execute(update(JobRow).values(alias="held"))
        with database.write() as session:
            session.execute(update(JobRow).values(alias="free"))
        silent.execute(update(JobRow).values(alias="held"))
    lost.dispose()


def test_a_dead_network_is_an_outage_within_seconds_for_pooled_and_new_connections(tmp_path: Path) -> None:
    with far_host() as (address, there, cut), postgres_server(tmp_path, listen=f"{address},127.0.0.1") as server:
        command = [*there, sys.executable, "-c", FAR_CLIENT, server.url()]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            try:
                assert client.stdout is not None
                assert client.stdout.readline() == "ready\n"
                cut()
                told, _ = client.communicate("go\n", timeout=60)
            finally:
                client.kill()
    took_s = [float(line) for line in told.split()]
    assert len(took_s) == 2
    assert max(took_s) < WITHIN_S


def test_a_host_that_does_not_take_the_connection_is_an_outage_within_seconds() -> None:
    # Its queue of connections is full, so it is silent to another one.
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        socket.socket() as first,
        socket.socket() as second,
    ):
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        database = Database(f"postgresql+psycopg://nobody:x@127.0.0.1:{listener.getsockname()[1]}/none")
        started = time.monotonic()
        with pytest.raises(ServiceUnavailable, match="timeout"):
            one(database)
        assert time.monotonic() - started < WITHIN_S
        database.dispose()


def test_a_server_that_does_not_exist_is_an_outage() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    database = Database(f"postgresql+psycopg://nobody:x@127.0.0.1:{port}/none")
    with pytest.raises(ServiceUnavailable, match="the database does not answer"):
        one(database)
    database.dispose()


@on_postgresql
def test_what_the_url_says_of_a_connection_goes_before_our_own(database: Database) -> None:
    url = database.engine.url.update_query_dict({"options": "-c lock_timeout=123", "application_name": "mine"})
    own = Database(url.render_as_string(hide_password=False))
    with own.read() as session:
        assert session.scalar(text("SHOW lock_timeout")) == "123ms"
        assert session.scalar(text("SHOW application_name")) == "mine"
        assert session.scalar(text("SHOW idle_in_transaction_session_timeout")) == "1min"
    own.dispose()


@on_both_databases
def test_a_pool_without_a_free_connection_is_an_outage(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database.engine.pool, "_timeout", 0.1)
    held = []
    with pytest.raises(ServiceUnavailable, match="no connection was free"):
        while len(held) < 100:
            held.append(database.engine.connect())
            one(database)
    for connection in held:
        connection.close()


@on_both_databases
def test_a_mistake_of_ours_is_not_called_an_outage(database: Database) -> None:
    row = {"id": 1, "team": "a", "created_at": 0.0}
    with pytest.raises(IntegrityError), database.write() as session:
        session.add_all([BatchRow(**row), BatchRow(**row | {"name": "again"})])
    with pytest.raises((ProgrammingError, OperationalError), match="no_such_table"), database.read() as session:
        session.execute(text("SELECT * FROM no_such_table"))
