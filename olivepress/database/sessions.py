"""Engines and transactions on SQLite (WAL, BEGIN IMMEDIATE) and PostgreSQL, and the database's own clock.

An outage is `ServiceUnavailable`, within about 10 s also where the network swallows packets. When it comes out of a
`write`, the transaction counts or not: if the connection was cut during the commit, nobody here can know. Callers may
do the same again, because every change is made to bear it: a step's carry (id, fence, running) as their predicate, so
a second finish of what was committed finds no row and is discarded as a late one is; a submission has its idempotency
key, a publication its job; heartbeats, flags and leases say the same twice.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, ExceptionContext, Float, create_engine, event, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

from olivepress.errors import PermanentError, ServiceUnavailable

__all__ = ["Database", "DatabaseNow", "Session"]

SQLITE_BUSY_TIMEOUT_MS = 15_000

# Together they bound how long a call hangs where packets are dropped: a connection of the pool that went dead is found
# after 6 s, making a new one is given up after 4 s. By itself TCP tries for a quarter of an hour.
CONNECT_TIMEOUT_S = 4
TCP_TIMEOUT_MS = 6_000
LIBPQ = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives": 1,
    # Sent while an answer is awaited; how often and for how long decides the TCP timeout.
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 5,
    "tcp_user_timeout": TCP_TIMEOUT_MS,
}
# What the server does with a session of ours. A host that is cut off in a transaction holds its row locks until the
# server notices: by itself after two hours.
POSTGRESQL_SESSION = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "5",
    "tcp_user_timeout": "15000",
    "idle_in_transaction_session_timeout": "60000",
    "lock_timeout": "10000",
}
POOL_TIMEOUT_S = 10
# Any number that nobody else locks in this database: "olive" in ASCII.
SCHEMA_LOCK = 0x6F6C697665
# Not in SQLAlchemy's OperationalError, and yet the same request may succeed soon: idle_in_transaction_session_timeout,
# and a standby that does not take writes (yet).
TRANSIENT_SQLSTATES = frozenset({"25P03", "25006"})


class DatabaseNow(FunctionElement[float]):
    """Seconds since 1970 by the database's clock: workers' clocks differ, leases must not."""

    type = Float()
    inherit_cache = True
    name = "database_now"


@compiles(DatabaseNow, "sqlite")
def _now_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(DatabaseNow, "postgresql")
def _now_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def seconds_now(session: Session) -> float:
    """Seconds since 1970 by the database's clock."""
    return session.scalars(select(DatabaseNow())).one()


class Database:
    """One engine and the two kinds of transactions on it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _engine(url)
        self._writer = self.engine.execution_options(olivepress_write=True)

    @property
    def name(self) -> str:
        """The URL without the password, for people."""
        return self.engine.url.render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads; on SQLite it never waits for a writer.

        Raises:
            ServiceUnavailable: the database does not answer.
        """
        with _translated(), Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes: committed at the end, rolled back on any error.

        Raises:
            ServiceUnavailable: the database does not answer.
        """
        with _translated(), Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A transaction that sees all tables as they are at its first query, however long it reads.

        Rows are streamed from the server. Writers are not held up.

        Raises:
            ServiceUnavailable: the database does not answer.
        """
        options: dict[str, Any] = {"stream_results": True}
        if self.engine.dialect.name == "postgresql":
            options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with _translated(), self.engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection

    @contextmanager
    def schema_change(self) -> Iterator[Connection]:
        """A transaction in which tables may be made, rebuilt and dropped; of two at once the second waits.

        On SQLite a table is changed by copying it, so foreign keys are off meanwhile and all are checked at the end.
        Source: sqlite.org/lang_altertable.html, "Making Other Kinds Of Table Schema Changes".

        Raises:
            PermanentError: on SQLite, rows would be left without their parents.
            ServiceUnavailable: the database does not answer.
        """
        with _translated(), self._writer.connect() as connection:
            if self.engine.dialect.name == "sqlite":
                with _foreign_keys_off(connection), connection.begin():
                    yield connection
                    _check_foreign_keys(connection)
                return
            with connection.begin():
                connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK})")
                connection.exec_driver_sql("SET LOCAL lock_timeout TO DEFAULT")
                yield connection

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()


@contextmanager
def _foreign_keys_off(connection: Connection) -> Iterator[None]:
    # The driver's own connection: the switch does nothing within a transaction, and SQLAlchemy would begin one.
    driver = connection.connection.driver_connection
    assert driver is not None
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def _check_foreign_keys(connection: Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        table, row, parent, _ = broken[0]
        raise PermanentError(
            f"row {row} of {table} would be left without its row in {parent} ({len(broken)} such rows); nothing was "
            "changed"
        )


@contextmanager
def _translated() -> Iterator[None]:
    """Outages, deadlocks and serialization failures become ServiceUnavailable; mistakes in a statement stay theirs."""
    try:
        yield
    except PoolTimeout as error:
        message = f"the database does not keep up: no connection was free for {POOL_TIMEOUT_S} s; try again later"
        raise ServiceUnavailable(message) from error
    except DBAPIError as error:
        if not _is_transient(error):
            raise
        message = f"the database does not answer: {str(error.orig).strip()}; see that it runs and is reachable"
        raise ServiceUnavailable(message) from error


def _is_transient(error: DBAPIError) -> bool:
    # SQLite calls a mistake in a statement operational too: its SQLITE_ERROR.
    if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
        return False
    # psycopg's sqlstate; None in errors of the connection itself, and no such attribute on SQLite's.
    sqlstate = getattr(error.orig, "sqlstate", None)
    return (
        error.connection_invalidated
        or isinstance(error, OperationalError | InterfaceError)
        or _hides_outage(error.orig)
        or sqlstate in TRANSIENT_SQLSTATES
    )


def _hides_outage(error: BaseException | None) -> bool:
    """Whether it arose while an outage was cleaned up after: such an error is about the cleaning only."""
    while error is not None:
        if type(error).__name__ == "OperationalError" and type(error).__module__.startswith("psycopg"):
            return True
        error = error.__context__
    return False


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    return _sqlite_engine(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql_engine(parsed)


def _postgresql_engine(url: URL) -> Engine:
    # What the URL says goes before; `options` in it are added to ours.
    session = " ".join(f"-c {name}={value}" for name, value in POSTGRESQL_SESSION.items())
    options = " ".join([session, *(str(value) for value in url.normalized_query.get("options", ()))])
    connect_args = {name: value for name, value in LIBPQ.items() if name not in url.query} | {"options": options}
    engine = create_engine(
        url, pool_pre_ping=True, pool_size=5, max_overflow=20, pool_timeout=POOL_TIMEOUT_S, connect_args=connect_args
    )

    @event.listens_for(engine, "handle_error")
    def _lost(context: ExceptionContext) -> None:
        # The dialect's ping resets autocommit in a `finally`, whose error hides that the connection is gone.
        if context.is_pre_ping:
            context.is_disconnect = True

    return engine


def _sqlite_engine(url: URL) -> Engine:
    path = url.database
    if path and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_MS / 1000, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, record: Any) -> None:
        # The driver must not begin transactions by itself: a deferred one gives "database is locked" under writers.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={SQLITE_BUSY_TIMEOUT_MS}")
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("olivepress_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
