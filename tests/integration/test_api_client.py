"""The client and the command line against the API over a real socket."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from olivepress.cli import run
from olivepress.client import Client
from olivepress.database.sessions import Database
from olivepress.database.tables import StepRow
from olivepress.delivery.pull import pull
from olivepress.errors import BadManifest, NotAllowed, NotFound, UnknownRecipe
from olivepress.jobs import StepKind
from olivepress.manifest import parse_manifest
from olivepress.recipes.recipe import BUILT_IN
from olivepress.registry import parse_reference
from tests.integration.api_cases import (
    CONVERT_NOTE,
    GATE_FAILED,
    KEY,
    PACKAGE,
    WORSE_PACKAGE,
    Api,
    api_over,
    fail_step,
    lead,
    publish_job,
    served,
    start_worker,
    validate,
)
from tests.integration.database_cases import claimed


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[Api]:
    with api_over(database, tmp_path) as api:
        yield api


@pytest.fixture
def url(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the API answers; the command line finds it too."""
    with served(api.app) as url:
        monkeypatch.setenv("OLIVEPRESS_URL", url)
        monkeypatch.setenv("OLIVEPRESS_API_KEY", KEY)
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, KEY) as client:
        yield client


def printed_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


class TestClient:
    def test_a_batch_goes_all_the_way(self, api: Api, client: Client, tmp_path: Path) -> None:
        submitted = client.submit(parse_manifest({"checkpoints": [{"path": "/models/m"}]}))
        publish_job(api, submitted["jobs"][0])

        batch = client.batch(submitted["id"])
        version = client.version(parse_reference(batch["jobs"][0]["version"]))
        pull(client, version, tmp_path / "m")

        assert batch["state"] == "succeeded"
        assert {name: (tmp_path / "m" / name).read_bytes() for name in PACKAGE} == PACKAGE
        assert len(version["files"]) == sum(path.is_file() for path in (tmp_path / "m").rglob("*"))

    def test_errors_of_the_api_are_raised_as_what_they_are(self, client: Client, url: str) -> None:
        with pytest.raises(NotFound, match="there is no job 7"):
            client.job(7)
        with pytest.raises(UnknownRecipe, match="there is no recipe 'x'"):
            client.submit(parse_manifest({"checkpoints": [{"path": "/m"}], "recipes": ["x"]}))
        with pytest.raises(BadManifest, match="would both become"):
            client.submit(parse_manifest({"checkpoints": [{"path": "/m"}, {"path": "/n/m"}]}))
        with Client(url, "wrong") as stranger, pytest.raises(NotAllowed, match="not the admin key"):
            stranger.jobs()

    def test_a_damaged_store_gives_no_download(self, api: Api, client: Client, tmp_path: Path) -> None:
        publish_job(api, api.submit("/models/m")["jobs"][0])
        for chunk in (api.store.root / "chunks").glob("*/*"):
            chunk.chmod(0o600)
            chunk.write_bytes(b"x" * chunk.stat().st_size)

        with pytest.raises(Exception, match="damaged"):
            pull(client, client.version(parse_reference("m-int4")), tmp_path / "out" / "m", sleep=lambda seconds: None)

        assert not (tmp_path / "out" / "m").exists()


class TestCommands:
    def test_submit_sends_absolute_paths_and_every_option(
        self, api: Api, url: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "p.jsonl").write_text('{"prompt": "Hi", "expect": {"contains": "o"}}\n')
        options = "--recipe cpu-int8 --base ./base --name bot --prompts p.jsonl --team legal --priority 9 --alias next"

        assert run(["submit", "sub/../runs/lora", *options.split(), "--batch-name", "b", "--fresh", "--json"]) == 0

        submitted = printed_json(capsys)
        (job,) = api.get(f"/v1/batches/{submitted['id']}")["jobs"]
        assert (job["path"], job["base"]) == (str(tmp_path / "runs/lora"), str(tmp_path / "base"))
        assert (job["name"], job["model"], job["recipe"]) == ("bot", "bot-int8", "cpu-int8")
        assert (job["team"], job["priority"], job["alias"]) == ("legal", 9, "next")

    def test_a_manifest_is_submitted_and_options_override_it(
        self, api: Api, url: str, tmp_path: Path, capsys: Any
    ) -> None:
        text = "name: bots\nrecipes: [cpu-int4, cpu-int8]\ncheckpoints: [runs/a, {path: runs/b, name: bee}]\n"
        (tmp_path / "batch.yaml").write_text(text)

        assert run(["submit", "--manifest", str(tmp_path / "batch.yaml"), "--recipe", "cpu-fp32", "--json"]) == 0

        batch = api.get(f"/v1/batches/{printed_json(capsys)['id']}")
        assert batch["name"] == "bots"
        assert [(job["name"], job["recipe"]) for job in batch["jobs"]] == [("a", "cpu-fp32"), ("bee", "cpu-fp32")]
        assert batch["jobs"][0]["path"] == str(tmp_path / "runs/a")

    def test_submit_says_how_to_follow_the_batch(self, url: str, capsys: Any) -> None:
        assert run(["submit", "/models/a"]) == 0
        assert capsys.readouterr().out == "batch 1 with 1 job; see it: olivepress watch 1\n"

    def test_submit_and_watch_ends_with_the_table_and_1_for_a_failed_job(self, api: Api, url: str, capsys: Any) -> None:
        work = threading.Thread(target=_press_first_and_fail_second, args=(api,))
        work.start()

        code = run(["submit", "/models/a", "/models/b", "--watch"])
        work.join()

        shown = capsys.readouterr().out
        assert code == 1
        assert "a-int4:1" in shown
        assert "job 2 b cpu-int4: ingest: /models/b has no config.json; copy the whole folder" in shown

    def test_a_manifest_in_the_place_of_a_checkpoint_is_told_how_it_is_meant(
        self, url: str, tmp_path: Path, capsys: Any
    ) -> None:
        (tmp_path / "batch.yaml").write_text("checkpoints: [a]\n")

        assert run(["submit", str(tmp_path / "batch.yaml")]) == 2

        assert "submit it with --manifest" in capsys.readouterr().err

    def test_an_unknown_recipe_is_code_2_and_one_line(self, url: str, capsys: Any) -> None:
        assert run(["submit", "/models/a", "--recipe", "nope"]) == 2

        printed = capsys.readouterr()
        assert printed.out == ""
        names = ", ".join(sorted(BUILT_IN))
        assert printed.err == f"error: there is no recipe 'nope'; choose one of: {names}\n"

    def test_a_wrong_key_is_code_5(self, url: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OLIVEPRESS_API_KEY", "wrong")

        assert run(["jobs"]) == 5
        assert capsys.readouterr().err.startswith("error: this is not the admin key")

    @pytest.mark.parametrize("arguments", ["job 9", "cancel 9", "cancel --batch 9", "watch 9", "models nope", "watch"])
    def test_what_is_not_there_is_code_4(self, url: str, arguments: str, capsys: Any) -> None:
        assert run(arguments.split()) == 4
        assert capsys.readouterr().err.startswith("error: ")

    def test_a_job_shows_its_error_attempts_and_log(self, api: Api, url: str, capsys: Any) -> None:
        (job_id,) = api.submit("/models/a")["jobs"]
        fail_step(api, job_id, StepKind.INGEST, "the disk was slow; try again", may_retry=True)
        fail_step_now(api, job_id, "/models/a has no config.json; copy the whole folder")

        assert run(["job", str(job_id)]) == 0

        shown = capsys.readouterr().out
        assert "ingest: /models/a has no config.json; copy the whole folder" in shown
        assert "attempts of ingest" in shown
        assert "4.30 GB" in shown
        assert "last line" in shown

    def test_a_job_shows_what_it_reused(self, api: Api, url: str, capsys: Any) -> None:
        publish_job(api, api.submit("/models/a")["jobs"][0])
        (second,) = api.submit("/models/a")["jobs"]
        publish_job(api, second)

        assert run(["job", str(second)]) == 0
        shown = capsys.readouterr().out
        assert "reused from job 1" in shown
        assert f"note of convert  {CONVERT_NOTE}" in shown
        assert run(["watch"]) == 0
        reused = f"job {second} a cpu-int4: convert, package, reference, validate reused from job 1"
        assert reused in capsys.readouterr().out

    def test_every_list_has_a_table_and_one_json_document(self, api: Api, url: str, capsys: Any) -> None:
        start_worker(api.database)
        publish_job(api, api.submit("/models/a")["jobs"][0])
        expected = {
            "jobs": "a-int4:1",
            "models": "latest → 1",
            "models a-int4": "8.41 ms",
            "workers": "onnxruntime-genai 0.18.0",
            "recipes": "cpu-int4",
            "job 1": "a-int4:1",
        }
        for command, shown in expected.items():
            assert run(command.split()) == 0
            table = capsys.readouterr()
            assert shown in table.out, command
            assert max(map(len, table.out.splitlines())) <= 100, command
            assert run([*command.split(), "--json"]) == 0
            assert printed_json(capsys), command

    def test_log_prints_all_of_a_steps_log(self, api: Api, url: str, capsys: Any) -> None:
        (job_id,) = api.submit("/models/a")["jobs"]
        fail_step(api, job_id, StepKind.INGEST, "no")

        assert run(["job", str(job_id), "--log", "--step", "ingest"]) == 0
        assert capsys.readouterr().out == "--- ingest, attempt 1, failed\nfirst line\nlast line\n\n"

    def test_cancel_ends_a_job_or_a_batch(self, api: Api, url: str, capsys: Any) -> None:
        api.submit("/models/a", "/models/b")
        claimed(api.database, 1, StepKind.INGEST)

        assert run(["cancel", "2"]) == 0
        assert capsys.readouterr().out == "job 2 is cancelled\n"
        assert run(["cancel", "--batch", "1"]) == 0
        assert capsys.readouterr().out == "batch 1 is running; what runs is being ended\n"

    def test_watch_takes_the_newest_batch_and_shows_what_a_gate_refused(self, api: Api, url: str, capsys: Any) -> None:
        publish_job(api, api.submit("/models/old")["jobs"][0])
        validate(api, api.submit("/models/new")["jobs"][0], GATE_FAILED, WORSE_PACKAGE)

        assert run(["watch"]) == 1

        shown = capsys.readouterr().out
        assert "prompts_passed is 0.25, the limit 0.8 (2 of 8)" in shown
        assert "7/8" in shown
        assert "old" not in shown

    def test_doctor_is_content_when_every_part_answers(self, api: Api, url: str, capsys: Any) -> None:
        lead(api.database)
        start_worker(api.database)

        # Redis is not there in this test.
        assert run(["doctor", "--json"]) == 1

        checks = {check["name"]: check["status"] for check in printed_json(capsys)["checks"]}
        assert [name for name, status in checks.items() if status == "fail"] == ["redis"]
        assert {checks[name] for name in ("api", "database", "scheduler", "workers")} == {"ok"}


class TestInstall:
    def test_a_version_is_installed_whole_and_only_once(self, api: Api, url: str, tmp_path: Path, capsys: Any) -> None:
        publish_job(api, api.submit("/models/m")["jobs"][0])
        cache = tmp_path / "cache"

        assert run(["install", "m-int4", "--foundry-cache", str(cache), "--json"]) == 0
        first = printed_json(capsys)
        assert run(["install", "m-int4:1", "--foundry-cache", str(cache), "--json"]) == 0
        second = printed_json(capsys)

        directory = Path(first["directory"])
        assert (first["id"], first["was_there"], second["was_there"]) == ("m-int4:1", False, True)
        assert {name: (directory / name).read_bytes() for name in PACKAGE} == PACKAGE
        assert json.loads((directory / "inference_model.json").read_text())["Name"] == "m-int4:1"

    def test_a_version_that_there_is_not_leaves_the_cache_alone(
        self, api: Api, url: str, tmp_path: Path, capsys: Any
    ) -> None:
        publish_job(api, api.submit("/models/m")["jobs"][0])

        assert run(["install", "m-int4:7", "--foundry-cache", str(tmp_path / "cache")]) == 4
        assert run(["install", "m-int4@production", "--foundry-cache", str(tmp_path / "cache")]) == 4

        assert not (tmp_path / "cache").exists()
        assert "there is no version m-int4:7" in capsys.readouterr().err

    def test_damaged_files_are_not_installed(self, api: Api, url: str, tmp_path: Path, capsys: Any) -> None:
        publish_job(api, api.submit("/models/m")["jobs"][0])
        digest = api.get("/v1/models/m-int4/versions/1")["artifact_digest"]
        (chunk,) = api.store.manifest(digest).file("model.onnx.data").chunks
        stored = api.store.root / "chunks" / chunk.sha256[:2] / chunk.sha256
        stored.chmod(0o600)
        stored.write_bytes(os.urandom(chunk.size_bytes))

        assert run(["install", "m-int4", "--foundry-cache", str(tmp_path / "cache")]) == 1

        assert "damaged" in capsys.readouterr().err
        # What arrived whole waits beside its place for the next call.
        assert [path.name for path in (tmp_path / "cache/olivepress").iterdir() if not path.name.startswith(".")] == []


def fail_step_now(api: Api, job_id: int, message: str) -> None:
    """Fail a step that waits for its next attempt, without the waiting."""
    with api.database.write() as session:
        session.execute(update(StepRow).where(StepRow.job_id == job_id).values(run_at=0.0))
    fail_step(api, job_id, StepKind.INGEST, message)


def _press_first_and_fail_second(api: Api) -> None:
    tick = threading.Event()
    while not api.get("/v1/jobs"):
        tick.wait(0.05)
    publish_job(api, 1)
    fail_step(api, 2, StepKind.INGEST, "/models/b has no config.json; copy the whole folder")
