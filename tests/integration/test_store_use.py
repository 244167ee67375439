"""Everybody can see what the store holds and what sharing saves, by family."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from olivepress.cli import run
from olivepress.database.sessions import Database
from tests.integration.api_cases import KEY, PACKAGE, Api, api_over, publish_job, served


@pytest.fixture
def api(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with api_over(database, tmp_path / "api") as api, served(api.app) as url:
        monkeypatch.setenv("OLIVEPRESS_URL", url)
        monkeypatch.setenv("OLIVEPRESS_API_KEY", KEY)
        yield api


def test_an_empty_store_holds_nothing(api: Api) -> None:
    found = api.get("/v1/store")
    assert (found["artifacts"], found["logical_bytes"], found["stored_bytes"], found["families"]) == (0, 0, 0, [])
    assert run(["store", "stats"]) == 0


def test_what_versions_share_is_stored_once(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    # given a version, whose package, overlay and reference are three artifacts, and one that nobody published
    (job,) = api.submit("/models/a", recipes=["cpu-int4"])["jobs"]
    publish_job(api, job)
    other = api.store.root.parent / "other"
    other.mkdir()
    (other / "model.onnx.data").write_bytes(PACKAGE["model.onnx.data"])
    api.store.put_directory(other)
    # when
    assert run(["store", "stats", "--json"]) == 0
    # then
    found = json.loads(capsys.readouterr().out)
    rows = {row["family"]: row for row in found["families"]}
    package_bytes = sum(map(len, PACKAGE.values()))
    assert rows["qwen2"]["artifacts"] == 3
    assert 2 * package_bytes < rows["qwen2"]["logical_bytes"] < 2 * package_bytes + 10_000
    assert package_bytes < rows["qwen2"]["stored_bytes"] < package_bytes + 10_000
    assert rows["(unpublished)"]["stored_bytes"] == len(PACKAGE["model.onnx.data"])
    # Shared by both, and counted once in the sum.
    assert found["stored_bytes"] == rows["qwen2"]["stored_bytes"]
    assert found["logical_bytes"] == sum(row["logical_bytes"] for row in rows.values())

    assert run(["store", "stats"]) == 0
    assert "qwen2" in capsys.readouterr().out
