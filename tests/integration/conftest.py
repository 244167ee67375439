"""A real database for each test that asks for one, and one trained family of models for all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database
from scheduler import background
from tests.doubles.clock import Clock
from tests.integration.database_cases import SQLITE, fresh_postgresql_url, sqlite_url
from tests.postgres import PostgresServer


@pytest.fixture
def database_kind(request: pytest.FixtureRequest) -> str:
    """SQLite, unless the test is marked `on_both_databases`: then it runs on each."""
    return getattr(request, "param", SQLITE)


@pytest.fixture
def database_url(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database that is this test's own."""
    if database_kind == SQLITE:
        yield sqlite_url(tmp_path)
        return
    with fresh_postgresql_url(request.getfixturevalue("postgres")) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_template(postgres: PostgresServer) -> str:
    """A database with the present schema on the PostgreSQL server: copying it is faster than migrating."""
    database = Database(postgres.create_database("migrated"))
    upgrade(database)
    database.dispose()
    return "migrated"


@pytest.fixture
def database(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database with the migrated schema: SQLite in WAL mode, or PostgreSQL."""
    if database_kind == SQLITE:
        database = Database(sqlite_url(tmp_path))
        upgrade(database)
        yield database
        database.dispose()
        return
    template = request.getfixturevalue("migrated_template")
    with fresh_postgresql_url(request.getfixturevalue("postgres"), template) as url:
        database = Database(url)
        yield database
        database.dispose()


@pytest.fixture(scope="session")
def small_family(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The demo's family in small, really trained (a `demo_family.Family`); not to be changed."""
    # Not above: tests without the toolchain share this file.
    from workers.toolchains.demo_family import make_family

    return make_family(tmp_path_factory.mktemp("demo") / "family", lambda phase, share: None, "small")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which the leader's background work is due."""
    double = Clock()
    monkeypatch.setattr(background, "time", double)
    return double
