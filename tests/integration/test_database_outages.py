"""What a caller sees when PostgreSQL stops, restarts, cuts a connection or is behind a dead network."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError, ProgrammingError

from olivepress.database import sessions, steps
from olivepress.database.sessions import Database
from olivepress.database.tables import BatchRow, JobRow
from olivepress.errors import ServiceUnavailable
from olivepress.jobs import StepKind
from tests.integration.database_cases import POSTGRESQL, claimed, on_both_databases, submit_paths
from tests.postgres import PostgresServer

on_postgresql = pytest.mark.parametrize("database_kind", [POSTGRESQL], indirect=True)
# What sessions.py promises, and room for a busy machine.
WITHIN_S = 10.0 + 5.0


def one(database: Database) -> int:
    with database.read() as session:
        return session.scalars(text("SELECT 1")).one()  # type: ignore[arg-type]


@contextmanager
def silent_network(server: PostgresServer) -> Iterator[tuple[str, threading.Event]]:
    """A way to the server on which all bytes vanish once the event is set, as behind a host that lost its power.

    Gives "HOST:PORT" and the event.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    dead, open_sockets = threading.Event(), [listener]

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if dead.is_set():
                    return
                sink.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                open_sockets.append(near)
                if dead.is_set():
                    continue
                far = socket.create_connection((server.host, server.port))
                open_sockets.append(far)
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", dead
    finally:
        for each in open_sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


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


@on_postgresql
def test_a_dead_network_is_an_outage_within_seconds_for_pooled_and_new_connections(
    database: Database, postgres: PostgresServer
) -> None:
    direct = database.engine.url.render_as_string(hide_password=False)
    with silent_network(postgres) as (address, dead):
        far = Database(direct.replace(f"{postgres.host}:{postgres.port}", address))
        assert one(far) == 1
        dead.set()
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(ServiceUnavailable):
                one(far)
            assert time.monotonic() - started < WITHIN_S
        far.dispose()


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
    if database.engine.dialect.name == POSTGRESQL:
        with pytest.raises(ProgrammingError), database.read() as session:
            session.execute(text("SELECT * FROM no_such_table"))
