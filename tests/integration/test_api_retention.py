"""Retention over HTTP, as the client asks for it, and by the scheduler's clock."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olivepress.client import Client
from olivepress.database.sessions import Database
from olivepress.database.workers import take_lease
from olivepress.errors import TransientError
from olivepress.retention import LEASE
from olivepress.settings import Settings
from olivepress.store import DirectoryStore
from scheduler.retention import Retention
from tests.doubles.clock import Clock
from tests.integration.api_cases import KEY, PACKAGE, Api, api_over, publish_job, served


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[Api]:
    with api_over(database, tmp_path) as api:
        yield api


@pytest.fixture
def orphan(api: Api) -> str:
    """An old artifact to which nothing refers, beside a published one."""
    publish_job(api, api.submit("/models/support-en", recipes=["cpu-int4"])["jobs"][0])
    return old_orphan(api.store)


def old_orphan(store: DirectoryStore) -> str:
    source = store.root.parent / "orphan"
    source.mkdir()
    (source / "model.onnx").write_bytes(b"nobody needs it")
    digest = store.put_directory(source).digest
    for path in (*store.root.glob("chunks/*/*"), *store.root.glob("manifests/*/*")):
        os.utime(path, (path.stat().st_mtime - 100_000,) * 2)
    return digest


def counts(report: dict[str, Any]) -> dict[str, int]:
    return {item["kind"]: item["count"] for item in report["kinds"] if item["count"]}


def test_a_look_names_what_a_run_then_takes_out(api: Api, orphan: str) -> None:
    planned = api.get("/v1/retention")
    assert planned["dry_run"]
    assert counts(planned) == {"artifacts": 1, "chunks": 1}
    assert planned == api.get("/v1/retention")

    done = api.http.post("/v1/retention").json()

    assert not done["dry_run"]
    assert counts(done) == counts(planned)
    assert done["waiting"] == {"count": 2, "size_bytes": sum(item["size_bytes"] for item in planned["kinds"])}
    assert not api.store.has(orphan)
    files = api.get("/v1/models/support-en-int4/versions/latest")["files"]
    assert {file["path"] for file in files} > set(PACKAGE)


def test_the_client_asks_for_both_and_names_a_run_that_is_under_way(api: Api, orphan: str) -> None:
    with served(api.app) as url, Client(url, KEY) as client:
        assert counts(client.retention(dry_run=True))["artifacts"] == 1
        assert api.store.has(orphan)
        with api.database.write() as session:
            take_lease(session, LEASE, "another", 60)

        with pytest.raises(TransientError, match="runs already"):
            client.retention(dry_run=False)


class TestTheScheduler:
    def run(self, retention: Retention) -> bool:
        """Tick once and wait for the run that this started."""
        was_started = retention.run_when_due()
        retention.wait()
        return was_started

    def test_it_runs_soon_after_its_start_again_when_the_trash_has_settled_and_then_every_hour(
        self, api: Api, orphan: str, clock: Clock
    ) -> None:
        retention = Retention(Settings(data_dir=api.store.root.parent), api.database)
        ran_at = []
        for now in range(0, 9000, 10):
            clock.now = 1000.0 + now
            if self.run(retention):
                ran_at.append(now)
                for batch in api.store.places.trash.iterdir():
                    os.utime(batch, (batch.stat().st_mtime - 120,) * 2)

        assert ran_at == [60, 180, 3780, 7380]
        assert list(api.store.places.trash.iterdir()) == []
        assert not api.store.has(orphan)

    def test_it_never_runs_when_it_is_turned_off(self, api: Api, clock: Clock) -> None:
        retention = Retention(Settings(data_dir=api.store.root.parent, retention_every_s=0), api.database)
        clock.now += 1e6

        assert not self.run(retention)

    def test_a_run_that_is_refused_does_not_end_the_scheduler_and_the_next_one_does_the_work(
        self, api: Api, orphan: str, clock: Clock
    ) -> None:
        retention = Retention(Settings(data_dir=api.store.root.parent), api.database)
        manifest = api.store.places.manifest(orphan)
        with api.database.write() as session:
            take_lease(session, LEASE, "another", 60)
        clock.now += 60
        assert self.run(retention)
        assert manifest.exists()

        with api.database.write() as session:
            take_lease(session, LEASE, "another", -1)
        clock.now += 3600
        assert self.run(retention)

        assert not manifest.exists()

    def test_nothing_starts_after_stop(self, api: Api, clock: Clock) -> None:
        retention = Retention(Settings(data_dir=api.store.root.parent), api.database)
        clock.now += 60
        retention.stop()

        assert not self.run(retention)
