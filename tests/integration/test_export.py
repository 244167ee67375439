"""What one stack exports, a machine without any imports."""

import hashlib
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
        (job,) = api.submit("/models/a", recipes=["cpu-int4"])["jobs"]
        publish_job(api, job)
        monkeypatch.setenv("OLIVEPRESS_URL", url)
        monkeypatch.setenv("OLIVEPRESS_API_KEY", KEY)
        # The package of this test is no real model, and the runtime would rightly decline it.
        monkeypatch.setattr("olivepress.foundry.runtime.has_sdk", lambda: False)
        yield api


def test_a_version_goes_through_one_file(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    place = tmp_path / "place"
    place.mkdir()
    files = [place / "one.tar", place / "two.tar"]
    # when
    for file in files:
        assert run(["export", "a-int4", str(file)]) == 0
    assert run(["export", "a-int4", str(files[0])]) == 1
    assert "exists; --force replaces it" in capsys.readouterr().err
    assert run(["export", "a-int4:1", str(files[0]), "--force", "--json"]) == 0
    # then
    assert json.loads(capsys.readouterr().out)["version"] == "a-int4:1"
    assert sorted(path.name for path in place.iterdir()) == ["one.tar", "two.tar"]
    assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in files}) == 1
    # when there is no stack
    monkeypatch.setenv("OLIVEPRESS_URL", "http://127.0.0.1:9")
    assert run(["import", str(files[1]), "--foundry-cache", str(tmp_path / "cache")]) == 0
    # then
    installed = tmp_path / "cache/olivepress/a-int4-1"
    assert {path: (installed / path).read_bytes() for path in PACKAGE} == PACKAGE
