"""What tests of every kind share: one PostgreSQL server a test run, how wide tables are, which keys are known."""

import os
from collections.abc import Iterator

import pytest

from olivepress.own_process import WAITING
from tests.postgres import PostgresServer, postgres_server

# Before torch is imported: two test processes on two cores would wait for each other's threads most of the time.
os.environ.update(WAITING)


@pytest.fixture(autouse=True)
def _wide_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as where nobody says how wide a terminal is; the one that the tests are started from does not matter."""
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture(autouse=True)
def _own_known_keys(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a test comes to rely on is forgotten after it, and nothing of this user's own counts in it."""
    file = tmp_path_factory.getbasetemp() / f"known-keys-{os.urandom(6).hex()}.json"
    monkeypatch.setenv("OLIVEPRESS_KNOWN_KEYS", str(file))


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A running server; a test that stops it starts it again. Tests make databases of their own on it."""
    with postgres_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server
