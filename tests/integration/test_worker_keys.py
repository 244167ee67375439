"""What a worker says of the key that it publishes with."""

from dataclasses import replace
from pathlib import Path

import pytest

from olivepress.database import signing_keys
from olivepress.database.sessions import Database
from olivepress.database.workers import alive
from olivepress.evidence.signing import SigningKey
from olivepress.settings import Settings
from tests.integration.database_cases import worker_facts
from workers import host


class Worker:
    """One that registered and reports, without its process."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database, self.key_file = database, directory / "signing-key.pem"
        self.key = SigningKey.load_or_create(self.key_file).public
        self.settings = Settings(data_dir=directory, signing_key_file=self.key_file)
        self.facts = replace(worker_facts(), signing_key=self.key.id)

    def register(self) -> None:
        """As when it starts."""
        with self.database.write() as session:
            host.register(session, self.settings, self.facts)

    def reported_key(self) -> str | None:
        """What its row says after the next report."""
        with self.database.write() as session:
            assert host.report(session, self.settings, self.facts.id)
            (row,) = alive(session)
            return row.signing_key

    def known_keys(self) -> set[str]:
        """The ids of the stack's keys."""
        with self.database.read() as session:
            return {key["id"] for key in signing_keys.keys(session)}


@pytest.fixture
def worker(database: Database, tmp_path: Path) -> Worker:
    return Worker(database, tmp_path)


def test_the_key_of_a_worker_is_known_before_anything_is_published(worker: Worker) -> None:
    worker.register()

    assert worker.known_keys() == {worker.key.id}
    assert worker.reported_key() == worker.key.id


def test_a_worker_whose_key_file_is_gone_says_so_and_says_when_it_is_back(worker: Worker) -> None:
    worker.register()
    content = worker.key_file.read_bytes()

    worker.key_file.unlink()
    without = worker.reported_key()
    worker.key_file.write_bytes(content)
    worker.key_file.chmod(0o644)
    too_open = worker.reported_key()
    worker.key_file.chmod(0o600)

    assert (without, too_open, worker.reported_key()) == (None, None, worker.key.id)


def test_a_key_that_was_put_in_the_place_of_another_is_known_with_the_next_report(worker: Worker) -> None:
    worker.register()
    worker.key_file.unlink()
    new = SigningKey.load_or_create(worker.key_file).public

    assert worker.reported_key() == new.id
    assert worker.known_keys() == {worker.key.id, new.id}


def test_a_worker_without_a_key_makes_none_known(worker: Worker) -> None:
    worker.settings = Settings(data_dir=worker.key_file.parent)
    worker.facts = replace(worker.facts, signing_key=None)
    worker.register()

    assert worker.reported_key() is None
    assert worker.known_keys() == set()
