"""What a check of the store found is known to those who cannot look into it; the scheduler makes one now and then."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from olivepress import store_check
from olivepress.cli import run
from olivepress.client import Client
from olivepress.database import store_checks
from olivepress.database.sessions import Database
from olivepress.database.tables import StoreCheckRow
from olivepress.errors import NotFound
from olivepress.settings import Settings
from scheduler.store_checks import DAY_S, FIRST_AFTER_S, LOOK_EVERY_S, StoreChecks
from tests.doubles.clock import Clock
from tests.integration.api_cases import KEY, Api, api_over, publish_job, served
from tests.integration.database_cases import on_both_databases


@pytest.fixture
def api(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with api_over(database, tmp_path / "api") as api, served(api.app) as url:
        monkeypatch.setenv("OLIVEPRESS_URL", url)
        monkeypatch.setenv("OLIVEPRESS_API_KEY", KEY)
        publish_job(api, api.submit("/models/a", recipes=["cpu-int4"])["jobs"][0])
        yield api


def lose_a_file(api: Api) -> None:
    files = api.get("/v1/models/a-int4/versions/1")["artifact_digest"]
    chunk = api.store.manifest(files).file("inference_model.json").chunks[0]
    api.store.places.chunk(chunk.sha256).unlink()


def test_one_that_was_never_checked_says_so(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert api.get("/v1/store")["last_check"] is None
    with Client(api_url(), KEY) as client, pytest.raises(NotFound, match="no full check of the store was made yet"):
        client.store_check()
    assert run(["store", "stats"]) == 0
    assert "never checked" in capsys.readouterr().err


def api_url() -> str:
    return os.environ["OLIVEPRESS_URL"]


@on_both_databases
def test_the_last_full_check_is_told_with_the_versions_that_it_found_hurt(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    # given
    store_check.check(api.database, api.store)
    assert run(["store", "stats"]) == 0
    assert "it was sound when all of it was read" in capsys.readouterr().err
    lose_a_file(api)
    # when only a fast check has seen it
    store_check.check(api.database, api.store, is_fast=True)
    # then
    with Client(api_url(), KEY) as client:
        assert client.store_check()["sound"] and not client.store_check("fast")["sound"]
    # when
    store_check.check(api.database, api.store)
    # then
    assert run(["store", "stats", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["last_check"]
    assert (found["kind"], found["sound"]) == ("full", False)
    assert [each["version"] for each in found["report"]["versions"]] == ["a-int4:1"]
    assert run(["store", "stats"]) == 0
    assert "not sound" in (said := capsys.readouterr().err) and "a-int4:1 (hurt)" in said
    # and a repair says what became of it
    store_check.repair(api.database, api.store)
    assert run(["store", "stats"]) == 0
    assert "a-int4:1 (lost)" in capsys.readouterr().err


def test_a_store_that_is_damaged_all_over_has_a_report_of_bounded_length(api: Api) -> None:
    report = store_check.check(api.database, api.store).to_dict() | {"damage": [{"sha256": "0" * 64}] * 100_000}
    with api.database.write() as session:
        store_checks.note(session, report)
    assert len(api.get("/v1/store/check")["report"]["damage"]) == store_checks.KEPT


class TestTheScheduler:
    def checks(self, api: Api, days: float = 30) -> StoreChecks:
        settings = Settings(data_dir=api.store.root.parent, store_dir=api.store.root, store_check_days=days)
        return StoreChecks(settings, api.database)

    def run(self, checks: StoreChecks, clock: Clock, after_s: float) -> bool:
        """Tick once, after so many seconds, and wait for the check that this started."""
        clock.now += after_s
        was_started = checks.run_when_due()
        checks.wait()
        return was_started

    def test_it_checks_a_store_that_was_never_checked_and_again_when_that_is_too_long_ago(
        self, api: Api, clock: Clock
    ) -> None:
        checks = self.checks(api)
        assert not self.run(checks, clock, 1)
        assert self.run(checks, clock, FIRST_AFTER_S)
        assert api.get("/v1/store/check")["sound"]
        assert not self.run(checks, clock, LOOK_EVERY_S)
        lose_a_file(api)
        with api.database.write() as session:
            session.execute(update(StoreCheckRow).values(finished_at=StoreCheckRow.finished_at - 31 * DAY_S))

        assert self.run(checks, clock, LOOK_EVERY_S)

        assert not api.get("/v1/store/check")["sound"]

    def test_a_check_that_an_engineer_made_lately_is_enough(self, api: Api, clock: Clock) -> None:
        checks = self.checks(api)
        store_check.check(api.database, api.store)
        assert not self.run(checks, clock, FIRST_AFTER_S)

    def test_it_checks_nothing_when_it_is_turned_off_or_stops(self, api: Api, clock: Clock) -> None:
        assert not self.run(self.checks(api, days=0), clock, 1e6)
        checks = self.checks(api)
        checks.stop()
        assert not self.run(checks, clock, 1e6)
