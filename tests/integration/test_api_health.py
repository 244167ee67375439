"""Health, workers and recipes over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from olivepress.database import signing_keys
from olivepress.database.sessions import Database, DatabaseNow
from olivepress.database.tables import SigningKeyRow, WorkerRow
from olivepress.database.workers import stopped
from olivepress.evidence.signing import PublicKey
from olivepress.jobs import StepKind
from olivepress.recipes.recipe import BUILT_IN
from tests.integration.api_cases import Api, api_over, lead, start_worker
from tests.integration.database_cases import OFFER, claimed

OLD, NEW = PublicKey(bytes(32)), PublicKey(bytes(range(32)))


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[Api]:
    with api_over(database, tmp_path) as api:
        yield api


def checks(api: Api) -> dict[str, tuple[str, str]]:
    return {check["name"]: (check["status"], check["detail"]) for check in api.get("/v1/health")}


class TestHealth:
    def test_without_scheduler_and_worker_the_stack_is_degraded(self, api: Api) -> None:
        assert api.get("/healthz")["status"] == "degraded"

    def test_with_both_it_is_ok(self, api: Api) -> None:
        lead(api.database)
        start_worker(api.database)

        health = api.get("/healthz")

        assert (health["status"], health["scheduler_alive"], health["workers_alive"]) == ("ok", True, 1)

    def test_a_scheduler_whose_lease_ran_out_does_not_count(self, api: Api) -> None:
        lead(api.database, lease_s=-1.0)
        start_worker(api.database)

        assert api.get("/healthz")["status"] == "degraded"
        assert checks(api)["scheduler"] == ("fail", "scheduler-1 led until its lease ran out")

    def test_every_part_that_is_away_says_what_now(self, api: Api) -> None:
        for check in api.get("/v1/health"):
            assert (check["status"] == "ok") == (check["what_now"] is None), check

        told = checks(api)
        assert told["database"] == ("ok", "sqlite answers")
        assert told["scheduler"][0] == told["workers"][0] == told["redis"][0] == "fail"
        # Nothing depends on it.
        assert told["flower"][0] == "warn"
        assert "no Redis is configured" in told["redis"][1]

    def test_living_workers_are_shown_with_their_toolchain(self, api: Api) -> None:
        start_worker(api.database)

        assert checks(api)["workers"] == ("ok", "1 alive, slots: 2; olive-ai 0.13.0, onnxruntime-genai 0.18.0")

    @pytest.mark.parametrize(
        ("known", "held", "status", "words"),
        [
            ([], None, "warn", "nothing is signed"),
            ([OLD], None, "fail", f"no running worker has the key {OLD.id}"),
            ([OLD], OLD, "ok", f"{OLD.id} on: host"),
            ([OLD, NEW], OLD, "warn", f"the newest key is {NEW.id}, and another signs on: host ({OLD.id})"),
        ],
        ids=["no key", "no holder", "one holder", "a former key"],
    )
    def test_who_signs_is_told(
        self, api: Api, known: list[PublicKey], held: PublicKey | None, status: str, words: str
    ) -> None:
        start_worker(api.database, signing_key=held.id if held else None)
        for age_s, key in enumerate(reversed(known)):
            with api.database.write() as session:
                signing_keys.note(session, key)
                since = SigningKeyRow.created_at - age_s
                session.execute(update(SigningKeyRow).where(SigningKeyRow.id == key.id).values(created_at=since))

        assert checks(api)["signing"][0] == status
        assert checks(api)["signing"][1].startswith(words)

    def test_a_worker_without_toolchain_is_named(self, api: Api) -> None:
        start_worker(api.database, toolchain={"python": "3.11.7"})

        status, detail = checks(api)["workers"]

        assert (status, "host" in detail) == ("fail", True)


class TestWorkers:
    def test_a_worker_is_alive_until_it_is_not_seen_for_a_while(self, api: Api) -> None:
        start_worker(api.database, "here")
        start_worker(api.database, "lost")
        start_worker(api.database, "ended")
        start_worker(api.database, "forgotten")
        with api.database.write() as session:
            session.execute(update(WorkerRow).where(WorkerRow.id == "lost").values(seen_at=DatabaseNow() - 46))
            session.execute(update(WorkerRow).where(WorkerRow.id == "forgotten").values(seen_at=DatabaseNow() - 90_000))
            stopped(session, "ended")

        workers = {worker["id"]: worker["alive"] for worker in api.get("/v1/workers")}

        assert workers == {"here": True, "lost": False, "ended": False}
        assert next(iter(workers)) == "here"

    def test_a_busy_worker_shows_how_many_steps_it_runs(self, api: Api) -> None:
        start_worker(api.database, OFFER.worker_id)
        for job_id in api.submit("/models/a", "/models/b")["jobs"]:
            claimed(api.database, job_id, StepKind.INGEST)

        (worker,) = api.get("/v1/workers")

        assert worker["running_steps"] == 2


def test_every_built_in_recipe_is_listed_with_its_settings(api: Api) -> None:
    assert api.get("/v1/recipes") == [recipe.to_dict() for recipe in BUILT_IN.values()]
