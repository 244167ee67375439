"""The API, its client and the command line where versions are measured again and models are imported."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olivepress.cli import run
from olivepress.client import Client
from olivepress.database import steps, unblocking
from olivepress.database.sessions import Database
from olivepress.database.unblocking import done_steps
from olivepress.jobs import StepKind
from olivepress.steps import SourcePlace, StepResult, spec_of
from tests.integration.api_cases import (
    KEY,
    PACKAGE,
    REPORT,
    Api,
    api_over,
    publish_job,
    served,
    start_worker,
    store_files,
    validate,
)
from tests.integration.database_cases import INGESTED, OFFER, RESULTS, claimed, job_of, step_of, succeed
from workers.steps import publish as publishing

VERSION = "support-int4:1"
RUNTIME = "foundry-local-sdk"
GATE = {"name": "edge_cases", "limit": True, "figure": False, "verdict": "failed", "note": "crashed", "unit": ""}


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[Api]:
    with api_over(database, tmp_path) as found:
        yield found


@pytest.fixture
def published(api: Api) -> Api:
    """With support-int4:1, and a living worker whose offer is OFFER's."""
    start_worker(
        api.database,
        OFFER.worker_id,
        fingerprint=OFFER.fingerprint,
        timed_fingerprint=OFFER.timed_fingerprint,
        toolchain={RUNTIME: "2.3.0"},
    )
    (job_id,) = api.submit("/models/support")["jobs"]
    certificate = REPORT["certificate"] | {"runtime": {RUNTIME: "2.2.1"}}
    validate(api, job_id, REPORT | {"certificate": certificate})
    publish_job(api, job_id)
    return api


@pytest.fixture
def at_stack(published: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """With the command line talking to it."""
    with served(published.app) as url:
        monkeypatch.setenv("OLIVEPRESS_URL", url)
        monkeypatch.setenv("OLIVEPRESS_API_KEY", KEY)
        yield published


def measure(api: Api, job_id: int, *gates: dict[str, Any]) -> None:
    """The job's validate ends with these failed gates."""
    certificate = REPORT["certificate"] | {"runtime": {RUNTIME: "2.3.0"}}
    report = REPORT | {"gates": list(gates), "certificate": certificate}
    result = StepResult({"verdict": "failed" if gates else "passed", "report": report})
    assert succeed(api.database, claimed(api.database, job_id, StepKind.VALIDATE), result)


def shown(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


class TestValidations:
    def test_a_validation_is_a_batch_of_one_job_that_the_version_lists(self, published: Api) -> None:
        place = "/v1/models/support-int4/versions/latest/validations"
        answer = published.http.post(place, json={"prompts": [{"prompt": "Hello"}]})
        assert answer.status_code == 202
        assert answer.headers["Location"] == f"/v1/batches/{answer.json()['id']}"
        (job_id,) = answer.json()["jobs"]
        assert published.get(f"/v1/jobs/{job_id}")["subject"] == VERSION
        measure(published, job_id)
        (listed,) = published.get(place)
        assert (listed["verdict"], listed["runtime"]) == ("passed", "2.3.0")
        assert published.get("/v1/models/support-int4")["versions"][0]["validations"] == [listed]
        assert published.get("/v1/models/support-int4/versions/1")["validations"] == [listed]
        assert published.get("/v1/models")[0]["newest"]["validations"] == [listed]
        assert published.get("/v1/models/support-int4")["aliases"] == {"latest": 1}

    @pytest.mark.parametrize(
        ("body", "status", "said"),
        [
            ({"gates": {"max_size": 1}}, 422, "there is no gate 'max_size'"),
            ({"soak": "long"}, 422, "soak"),
            ({"prompt": []}, 422, "prompt"),
        ],
    )
    def test_an_order_that_cannot_be_is_refused(self, published: Api, body: Any, status: int, said: str) -> None:
        answer = published.http.post("/v1/models/support-int4/versions/1/validations", json=body)
        assert (answer.status_code, said in answer.json()["detail"]) == (status, True)

    def test_the_command_line_orders_it_and_shows_its_report(
        self, at_stack: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text('{"prompt": "Hello"}\n')
        arguments = [
            "validate",
            VERSION,
            "--prompts",
            str(prompts),
            "--gates",
            "min_prompts_passed=0.9",
            "--soak",
            "20",
        ]
        assert run([*arguments, "--json"]) == 0
        (job_id,) = shown(capsys)["jobs"]
        with at_stack.database.read() as session:
            spec = spec_of(
                StepKind.VALIDATE, unblocking.job_facts(session, job_id), unblocking.done_steps(session, job_id)
            )
        assert (spec["gates"]["min_prompts_passed"], spec["soak"], len(spec["prompts"])) == (0.9, {"sessions": 20}, 1)
        assert run(["report", "--job", str(job_id)]) == 4
        capsys.readouterr()
        measure(at_stack, job_id, GATE)
        assert run(["report", "--job", str(job_id), "--json"]) == 0
        document = shown(capsys)
        assert (document["version"], document["verdict"], document["job_id"]) == (VERSION, "failed", job_id)
        assert run(["models", "support-int4"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"support-int4:1: measured again by job {job_id}" in said
        assert "runtime 2.3.0: failed" in said

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--gates", "max_size=1"], "there is no gate 'max_size'"),
            (["--gates", "nowhere.yaml"], "cannot read limits"),
            (["--gates", "edge_cases=["], "is no number, no text"),
            (["--soak", "long"], "soak"),
        ],
    )
    def test_options_that_cannot_be_are_told(
        self, at_stack: Api, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
    ) -> None:
        assert run(["validate", VERSION, *arguments]) == 2
        assert said in capsys.readouterr().err

    def test_gates_come_from_a_file_of_limits_or_a_recipe(
        self, at_stack: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name, content in (
            ("limits.yaml", "max_size_ratio: 0.3\n"),
            ("recipe.json", '{"gates": {"max_size_ratio": 0.3}}'),
        ):
            file = tmp_path / name
            file.write_text(content)
            assert run(["validate", VERSION, "--gates", str(file), "--json"]) == 0
            recipe = job_of(at_stack.database, shown(capsys)["jobs"][0]).recipe
            assert recipe["gates"]["max_size_ratio"] == 0.3


class TestRecertifications:
    def test_a_dry_run_shows_what_is_due_and_starts_nothing(
        self, at_stack: Api, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["recertify", "--dry-run", "--json"]) == 0
        found = shown(capsys)
        assert (found["runtime"], found["is_automatic"], found["started"]["jobs"]) == ("2.3.0", True, [])
        assert [(one["version"], one["due"]) for one in found["versions"]] == [(VERSION, "due")]
        assert run(["recertify"]) == 0
        assert "started: job 2" in capsys.readouterr().out
        assert run(["recertify"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "is certified again now" in said
        assert "nothing was due" in said

    def test_its_failure_is_seen_at_the_version(self, at_stack: Api, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["recertify", "--json"]) == 0
        (job_id,) = shown(capsys)["started"]["jobs"]
        measure(at_stack, job_id, GATE)
        assert "recertification_failed" in at_stack.get("/v1/models/support-int4/versions/1")["flags"]
        assert run(["promote", VERSION, "production"]) == 1
        assert "it failed when it was certified again" in capsys.readouterr().err


def run_import(api: Api, job_id: int, *, is_validated: bool = True, source: dict[str, Any] | None = None) -> None:
    """An import's steps to its end, with a directory that its ingest took over, and what it found in its source."""
    found = INGESTED | {"kind": "model", "sizes": None, "precision": "mixed", "size_bytes": 3_000, "files": []}
    found |= {"source": source} if source else {}
    digest = store_files(api, PACKAGE)
    results = {
        StepKind.INGEST: StepResult(found, digest),
        StepKind.PACKAGE: StepResult(RESULTS[StepKind.PACKAGE].result, digest),
        StepKind.REFERENCE: RESULTS[StepKind.REFERENCE],
        StepKind.VALIDATE: StepResult({"verdict": "passed", "report": REPORT}),
    }
    left_out = set() if is_validated else {StepKind.VALIDATE}
    left_out |= set() if source else {StepKind.REFERENCE}
    for kind, result in results.items():
        if kind not in left_out:
            assert succeed(api.database, claimed(api.database, job_id, kind), result)
    held = claimed(api.database, job_id, StepKind.PUBLISH)
    with api.database.write() as session:
        made = publishing.publish(session, api.store, job_id, done_steps(session, job_id))
        result = StepResult({"model": made.model_name, "number": made.number})
        assert steps.succeed(session, held, result, OFFER, api.store.has)


class TestImports:
    def test_an_imported_model_is_published_with_the_precision_of_its_graph(
        self, at_stack: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        directory = tmp_path / "output" / "Vendor Model_v1"
        directory.mkdir(parents=True)
        assert run(["import", str(directory.parent / "Vendor Model_v1"), "--family", "qwen2", "--json"]) == 0
        (job_id,) = shown(capsys)["jobs"]
        assert job_of(at_stack.database, job_id).checkpoint_path == str(directory)
        step = step_of(at_stack.database, job_id, StepKind.INGEST)
        with at_stack.database.read() as session:
            told = spec_of(StepKind.INGEST, unblocking.job_facts(session, job_id), {})
        assert (step.state, told["is_model"], told["family"]) == ("queued", True, "qwen2")
        run_import(at_stack, job_id)
        found = at_stack.get("/v1/models/vendor-model_v1/versions/latest")
        assert (found["recipe"], found["precision"], found["verdict"]) == ("import", "mixed", "passed")
        assert found["provenance"]["checkpoint"]["kind"] == "model"
        validate = step_of(at_stack.database, job_id, StepKind.VALIDATE)
        assert validate.memory_bytes > 640 * 2**20

    def test_one_with_its_source_is_held_against_it_and_says_which_that_was(
        self, at_stack: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["import", str(tmp_path / "theirs"), "--source", str(tmp_path / "a" / ".." / "tune"), "--json"]
        assert run([*arguments, "--base", str(tmp_path / "base"), "--gates", "min_top1_agreement=0.9"]) == 0
        (job_id,) = shown(capsys)["jobs"]
        with at_stack.database.read() as session:
            facts = unblocking.job_facts(session, job_id)
        assert facts.source == SourcePlace(str(tmp_path / "tune"), str(tmp_path / "base"))
        run_import(at_stack, job_id, source=INGESTED)
        assert run(["lineage", "theirs:1", "--json"]) == 0
        lineage = shown(capsys)
        (source,) = [one for one in lineage["things"] if one["name"] == "source"]
        assert source["digest"] == INGESTED["checkpoint_digest"]
        assert run(["import", str(tmp_path), "--gates", "min_top1_agreement=0.9"]) == 2
        assert "compares with the source; name the checkpoint as 'source'" in capsys.readouterr().err

    def test_a_cache_entry_is_called_as_it_calls_itself(
        self, at_stack: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        entry = tmp_path / "Publisher" / "v1"
        entry.mkdir(parents=True)
        (entry / "genai_config.json").write_text("{}")
        (entry / "inference_model.json").write_text('{"Name": "Phi-4-Mini:3"}')
        assert run(["import", str(tmp_path / "Publisher"), "--json"]) == 0
        assert job_of(at_stack.database, shown(capsys)["jobs"][0]).model_name == "phi-4-mini"

    def test_one_that_is_not_validated_is_flagged_and_no_alias_moves_to_it(
        self, at_stack: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["import", str(tmp_path), "--name", "theirs", "--without-validation"]
        assert run(arguments) == 2
        assert "--without-validation needs --reason" in capsys.readouterr().err
        assert run([*arguments, "--reason", "the vendor measured it", "--json"]) == 0
        (job_id,) = shown(capsys)["jobs"]
        run_import(at_stack, job_id, is_validated=False)
        found = at_stack.get("/v1/models/theirs/versions/1")
        assert found["flags"]["unvalidated"]["reason"] == "the vendor measured it"
        assert (found["verdict"], found["aliases"]) == ("not_measured", [])
        assert run(["report", "theirs:1"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "imported and never validated: the vendor measured it" in said
        page = at_stack.http.get("/v1/models/theirs/versions/1/report.html")
        assert "never validated: the vendor measured it" in page.text

    def test_one_that_was_validated_later_is_no_longer_flagged(self, published: Api) -> None:
        body = {"path": "/models/theirs", "unvalidated": "no time"}
        (job_id,) = published.http.post("/v1/imports", json=body).json()["jobs"]
        run_import(published, job_id, is_validated=False)
        answer = published.http.post("/v1/models/theirs/versions/1/validations", json={})
        (again,) = answer.json()["jobs"]
        measure(published, again)
        assert published.get("/v1/models/theirs/versions/1")["flags"] == {}

    def test_the_same_key_imports_once(self, api: Api) -> None:
        bodies = [
            api.http.post("/v1/imports", json={"path": "/models/x"}, headers={"Idempotency-Key": "one"}).json()
            for _ in range(2)
        ]
        assert bodies[0] == bodies[1]

    def test_a_team_that_has_as_much_as_it_may_imports_nothing(self, published: Api) -> None:
        assert published.http.patch("/v1/quotas/default", json={"max_versions": 1}).status_code == 200
        answer = published.http.post("/v1/imports", json={"path": "/models/x"})
        assert (answer.status_code, answer.json()["error_class"]) == (422, "QuotaExceeded")

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ({"path": "/models/x", "name": "No Name"}, "cannot be a model name"),
            ({"path": "/models/x", "gates": {"edge_cases": 3}}, "must be true or false"),
            ({"path": "/models/x", "unvalidated": " "}, "one line of 1 to"),
            ({"path": "/models/x", "unvalidated": "r", "gates": {"edge_cases": False}}, "held against no gates"),
            ({"path": "/models/x", "recipe": "cpu-int4"}, "recipe"),
        ],
    )
    def test_an_order_that_cannot_be_is_refused(self, api: Api, body: Any, said: str) -> None:
        answer = api.http.post("/v1/imports", json=body)
        assert (answer.status_code, said in answer.json()["detail"]) == (422, True)

    def test_the_client_imports_and_lists(self, published: Api) -> None:
        from olivepress.job_orders import ImportOrder, ValidationOrder
        from olivepress.registry import parse_reference

        with served(published.app) as url, Client(url, KEY) as client:
            assert client.import_model(ImportOrder(path="/models/x"))["jobs"] == [2]
            assert client.validate(parse_reference(VERSION), ValidationOrder())["jobs"] == [3]
            assert [one["job_id"] for one in client.validations(parse_reference(VERSION))] == [3]
            assert client.recertifications()["runtime"] == "2.3.0"
            assert client.recertify() == {"jobs": [4], "problems": []}
