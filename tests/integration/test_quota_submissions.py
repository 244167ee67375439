"""A submission that passes its team's quota is refused before any work, and leaves nothing."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from olivepress.cli import run
from olivepress.database.quotas import set_quota, usage_of
from olivepress.database.sessions import Database
from olivepress.errors import QuotaExceeded
from olivepress.importing import submit_import
from olivepress.job_orders import ImportOrder
from olivepress.manifest import parse_manifest
from olivepress.quotas import Quota, Usage
from olivepress.submission import Submitted, submit
from tests.integration.api_cases import KEY, Api, api_over, served
from tests.integration.database_cases import on_both_databases

TEAM = "default"


def limit(database: Database, **limits: int) -> None:
    with database.write() as session:
        set_quota(session, TEAM, Quota(**limits))


def used(database: Database) -> Usage:
    with database.read() as session:
        return usage_of(session, TEAM)


def checkpoint(root: Path, name: str, size_bytes: int) -> dict[str, str]:
    (root / name).mkdir()
    (root / name / "model.safetensors").write_bytes(bytes(size_bytes))
    return {"path": str(root / name)}


def test_waiting_jobs_count_with_what_they_are_predicted_to_publish(database: Database, tmp_path: Path) -> None:
    limit(database, max_bytes=100_000)
    first, second = (checkpoint(tmp_path, name, 150_000) for name in "ab")

    submit(database, parse_manifest({"checkpoints": [first]}), [tmp_path])

    assert used(database) == Usage(waiting_jobs=1, waiting_bytes=67_500)
    with pytest.raises(QuotaExceeded, match=r"67\.5 kB predicted for its waiting jobs; about 67\.5 kB more"):
        submit(database, parse_manifest({"checkpoints": [second]}), [tmp_path])
    assert used(database).waiting_jobs == 1


def test_a_submission_that_is_sent_again_is_not_refused(database: Database, tmp_path: Path) -> None:
    limit(database, max_jobs=1)
    manifest = parse_manifest({"checkpoints": [{"path": "/models/a"}]})
    first = submit(database, manifest, [], "once")

    again = submit(database, manifest, [], "once")

    assert (again.batch_id, again.is_new) == (first.batch_id, False)
    with pytest.raises(QuotaExceeded):
        submit(database, manifest, [], "twice")


@on_both_databases
def test_one_submission_that_is_sent_several_times_at_once_is_one_batch(database: Database) -> None:
    limit(database, max_jobs=1)
    manifest = parse_manifest({"checkpoints": [{"path": "/models/a"}]})
    found: list[Submitted] = []
    start = threading.Barrier(4)

    def send() -> None:
        start.wait()
        found.append(submit(database, manifest, [], "once"))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({this.batch_id for this in found}) == 1
    assert len(found) == 4


def test_an_import_counts_as_a_job_that_may_publish(database: Database) -> None:
    limit(database, max_versions=1)
    submit_import(database, ImportOrder(path="/models/onnx/a"))

    with pytest.raises(QuotaExceeded, match="1 jobs that may each publish one"):
        submit_import(database, ImportOrder(path="/models/onnx/b"))
    assert used(database).waiting_jobs == 1


class TestUser:
    """What a user sees."""

    @pytest.fixture
    def api(self, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
        with api_over(database, tmp_path / "stack") as api, served(api.app) as url:
            monkeypatch.setenv("OLIVEPRESS_URL", url)
            monkeypatch.setenv("OLIVEPRESS_API_KEY", KEY)
            yield api

    def test_the_refusal_says_what_is_used_the_limit_and_what_to_do(
        self, api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["quotas", "set", TEAM, "--versions", "1"]) == 0
        paths = [checkpoint(tmp_path, name, 10)["path"] for name in "ab"]

        assert run(["submit", *paths]) == 1

        error = capsys.readouterr().err
        assert "2 more would pass its quota of 1 versions; delete versions that nobody needs" in error
        assert api.get("/v1/batches") == []
        assert api.rings == []
