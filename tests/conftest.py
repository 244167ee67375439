"""What tests of every kind share: one PostgreSQL server a test run."""

from collections.abc import Iterator

import pytest

from tests.postgres import PostgresServer, postgres_server


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A running server; a test that stops it starts it again. Tests make databases of their own on it."""
    with postgres_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server
