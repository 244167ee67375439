"""A real database for each test that asks for one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """SQLite in WAL mode with the migrated schema."""
    database = Database(f"sqlite:///{tmp_path / 'olivepress.sqlite'}")
    upgrade(database)
    yield database
    database.dispose()
