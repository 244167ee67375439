"""Where a version comes from, over HTTP, through the client, on the command line; and what came from a checkpoint."""

import json
import xml.etree.ElementTree as Xml
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from olivepress.cli import run
from olivepress.client import Client
from olivepress.database.sessions import Database
from olivepress.errors import NotFound
from olivepress.jobs import StepKind, digest_of
from olivepress.registry import Order
from olivepress.steps import StepResult
from tests.integration.api_cases import KEY, PACKAGE, WORSE_PACKAGE, Api, api_over, publish_job, served, start_worker
from tests.integration.database_cases import (
    OFFER,
    RESULTS,
    claimed,
    on_both_databases,
    run_until,
    step_of,
    submit_paths,
    succeed,
)
from tests.integration.registry_cases import publish, version

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[Api]:
    with api_over(database, tmp_path) as api:
        start_worker(database, OFFER.worker_id, host="press-01")
        yield api


def made(api: Api, path: str = "/models/m", package: dict[str, bytes] = PACKAGE, **manifest: Any) -> int:
    """Publish a checkpoint; the id of its job."""
    job_id: int = api.submit(path, **manifest)["jobs"][0]
    publish_job(api, job_id, package)
    return job_id


def lineage_of(api: Api, name: str = "m-int4", ref: str = "1", **params: Any) -> Any:
    return api.get(f"/v1/models/{name}/versions/{ref}/lineage", **params)


def step_in(lineage: Any, kind: StepKind) -> Any:
    return next(step for step in lineage["steps"] if step["kind"] == kind)


class TestDocument:
    @on_both_databases
    def test_it_leads_from_the_checkpoint_over_every_step_to_the_version_and_its_aliases(self, api: Api) -> None:
        prompts = [{"prompt": "Hi", "expect": {"contains": "o"}}]
        job = made(api, prompts=prompts, alias="production")

        found = lineage_of(api)

        jsonschema.validate(found, api.get("/v1/lineage/schema"))
        assert (found["version"]["job_id"], found["version"]["aliases"]) == (job, ["production"])
        things = {thing["id"]: thing for thing in found["things"]}
        kinds = [thing["kind"] for thing in found["things"]]
        assert [kind for kind in kinds if kind not in ("artifact", "report")] == ["checkpoint", "recipe", "prompts"]
        version = api.get("/v1/models/m-int4/versions/1")
        assert things[f"checkpoint:{version['provenance']['checkpoint']['digest']}"]["name"] == "m"
        # From the published files back to the checkpoint, by what each step made and used.
        makers = {key: step for step in found["steps"] for key in step["made"]}
        frontier, seen = [f"artifact:{version['artifact_digest']}"], set[str]()
        while frontier:
            key = frontier.pop()
            seen.add(key)
            if key in makers:
                frontier += [used for used in makers[key]["used"] if used not in seen]
        assert seen == set(things)

    def test_steps_carry_key_toolchain_worker_and_attempts(self, api: Api) -> None:
        job = made(api)

        convert = step_in(lineage_of(api), StepKind.CONVERT)

        row = step_of(api.database, job, StepKind.CONVERT)
        assert (convert["key"], convert["fingerprint"]) == (row.key, OFFER.fingerprint)
        assert (convert["host"], convert["worker_id"]) == ("press-01", OFFER.worker_id)
        assert convert["toolchain"]["onnxruntime-genai"] == "0.18.0"
        assert [attempt["outcome"] for attempt in convert["attempts"]] == ["succeeded"]
        assert not convert["is_reused"]
        assert step_in(lineage_of(api), StepKind.PUBLISH)["key"] is None

    @on_both_databases
    def test_a_reused_step_shows_where_it_really_ran_and_whose_job_only_within_the_team(self, api: Api) -> None:
        first = made(api)
        made(api, name="again", recipes=["cpu-int4"], team="default", alias="latest", fresh=False)
        made(api, team="legal")

        ours = api.get("/v1/jobs")[0]["version"]
        assert ours == "m-int4:1"
        theirs = step_in(lineage_of(api, team="legal"), StepKind.CONVERT)

        assert (theirs["is_reused"], theirs["reused_job"]) == (True, None)
        assert theirs["host"] == "press-01"
        assert [attempt["outcome"] for attempt in theirs["attempts"]] == ["succeeded"]
        assert first == lineage_of(api)["version"]["job_id"]

    def test_a_deleted_version_still_has_its_lineage(self, api: Api) -> None:
        made(api)
        place = "/v1/models/m-int4/versions/1"
        body = {"force": True, "reason": "wrong data", "by": "anna"}
        assert api.http.post(f"{place}/delete", json=body).status_code == 200

        found = lineage_of(api)

        assert found["version"]["deleted"]["reason"] == "wrong data"
        assert found["version"]["aliases"] == []
        assert len(found["steps"]) > 4

    def test_a_version_that_was_not_made_here_has_what_is_known_and_no_steps(self, api: Api) -> None:
        publish(api.database, provenance={"checkpoint": {"name": "x", "digest": "e" * 64, "kind": "full"}})

        found = lineage_of(api)

        jsonschema.validate(found, api.get("/v1/lineage/schema"))
        assert found["steps"] == []
        assert f"checkpoint:{'e' * 64}" in [thing["id"] for thing in found["things"]]

    def test_of_a_ladder_the_steps_of_the_rung_that_passed_are_shown(self, api: Api) -> None:
        gate = {"name": "min_top1_agreement", "figure": 0.4, "limit": 0.7, "verdict": "failed", "note": ""}
        failed = StepResult({"verdict": "failed", "report": {"size_bytes": 7, "gates": [gate]}})
        (job,) = submit_paths(api.database, "/models/m", ladder=["cpu-int4", "cpu-int8"])
        run_until(api.database, job, StepKind.REFERENCE)
        assert succeed(api.database, claimed(api.database, job, StepKind.VALIDATE), failed)
        for kind in (StepKind.CONVERT, StepKind.PACKAGE, StepKind.VALIDATE):
            own = digest_of([1, kind]) if RESULTS[kind].artifact_digest else None
            assert succeed(api.database, claimed(api.database, job, kind), StepResult(RESULTS[kind].result, own))
        held = claimed(api.database, job, StepKind.PUBLISH)
        publish(api.database, name="m-int8", job_id=job, precision="int8", recipe_name="cpu-int8")
        assert succeed(api.database, held)

        found = lineage_of(api, "m-int8")

        kinds = [step["kind"] for step in found["steps"]]
        assert kinds == ["ingest", "reference", "convert", "package", "validate", "publish"]
        assert step_in(found, StepKind.CONVERT)["made"] == [f"artifact:{digest_of([1, StepKind.CONVERT])}"]

    def test_an_imported_model_is_no_checkpoint(self, api: Api) -> None:
        provenance = {"checkpoint": {"name": "x", "digest": "e" * 64, "kind": "model", "architecture": "qwen2"}}
        publish(api.database, provenance=provenance)

        (first, *_) = lineage_of(api)["things"]

        assert (first["id"], first["kind"], first["detail"]) == (f"model:{'e' * 64}", "model", "imported qwen2")

    def test_what_is_not_there_is_404(self, api: Api) -> None:
        made(api)
        for path in ("m-int4/versions/2", "m-int4/versions/production", "n/versions/1"):
            assert api.http.get(f"/v1/models/{path}/lineage").status_code == 404


@on_both_databases
class TestDescendants:
    def test_all_versions_of_a_checkpoint_are_found_by_the_beginning_of_its_digest(self, api: Api) -> None:
        made(api, recipes=["cpu-int4"])
        made(api, recipes=["cpu-int8"])
        made(api, "/models/other", WORSE_PACKAGE)
        digest = api.get("/v1/models/m-int4/versions/1")["provenance"]["checkpoint"]["digest"]

        found = api.get("/v1/lineage", checkpoint=digest[:10])
        page = api.get("/v1/lineage", checkpoint=digest, limit=1)
        rest = api.get("/v1/lineage", checkpoint=digest, limit=1, after=page[-1]["id"])

        assert [one["version"] for one in found] == ["m-int4:1", "m-int8:1"]
        assert {one["came_as"] for one in found} == {"checkpoint"}
        assert page + rest == found
        assert api.get("/v1/lineage", checkpoint=digest, team="legal") == []

    def test_versions_of_its_adapters_are_found_too(self, api: Api) -> None:
        provenance = {"checkpoint": {"name": "x", "digest": "e" * 64, "base_digest": "b" * 64}}
        publish(api.database, provenance=provenance)

        (found,) = api.get("/v1/lineage", checkpoint="b" * 64)

        assert (found["version"], found["came_as"]) == ("m-int4:1", "base")

    def test_what_is_no_digest_is_422(self, api: Api) -> None:
        for digest in ("", "short", "C0FFEE0123", "%%%%%%%%%%", "a" * 65):
            assert api.http.get("/v1/lineage", params={"checkpoint": digest}).status_code == 422, digest


class TestDrawing:
    def test_the_page_needs_no_network_and_shows_every_step(self, api: Api) -> None:
        made(api)

        page = api.http.get("/v1/models/m-int4/versions/1/lineage.html").text

        assert "default-src 'none'" in page
        assert "src=" not in page.replace("default-src", "").replace("style-src", "")
        assert "href=" not in page
        for step in lineage_of(api)["steps"]:
            assert f'class="name">{step["kind"]}</text>' in page


class TestCommand:
    @pytest.fixture
    def client(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
        with served(api.app) as url, Client(url, KEY) as client:
            monkeypatch.setenv("OLIVEPRESS_URL", url)
            monkeypatch.setenv("OLIVEPRESS_API_KEY", KEY)
            yield client

    def test_a_tree_a_document_a_drawing_and_a_page(
        self, api: Api, client: Client, tmp_path: Path, capsys: Any
    ) -> None:
        made(api)
        svg, html = tmp_path / "l.svg", tmp_path / "l.html"

        assert run(["lineage", "m-int4"]) == 0
        tree = capsys.readouterr().out
        assert run(["lineage", "m-int4:1", "--json", "--svg", str(svg), "--html", str(html)]) == 0
        document = json.loads(capsys.readouterr().out)

        digest = document["version"]["artifact_digest"]
        for shown in ("m-int4:1  passed", "checkpoint m", "convert", "press-01", digest[:12], "@latest"):
            assert shown in tree, tree
        drawn = Xml.fromstring(svg.read_text(encoding="utf-8"))
        texts = [text.text for text in drawn.iter(f"{SVG}text")]
        assert {step["kind"] for step in document["steps"]} | {"m-int4:1", "@latest"} <= set(texts)
        assert html.read_text(encoding="utf-8").startswith("<!doctype html>")
        assert document == client.lineage(version("m-int4"))

    def test_what_came_from_a_checkpoint(self, api: Api, client: Client, capsys: Any) -> None:
        made(api)
        digest = api.get("/v1/models/m-int4/versions/1")["provenance"]["checkpoint"]["digest"]
        client.delete_version(version("m-int4:1"), Order("anna", "wrong data", is_forced=True))

        assert run(["lineage", "--checkpoint", digest[:16]]) == 0
        assert "deleted" in capsys.readouterr().out
        assert run(["lineage", "--checkpoint", digest, "--json"]) == 0
        assert [one["version"] for one in json.loads(capsys.readouterr().out)] == ["m-int4:1"]
        assert run(["lineage", "--checkpoint", "e" * 64]) == 0
        assert "no version of team 'default' came from" in capsys.readouterr().err
        with pytest.raises(NotFound):
            client.version(version("m-int4:1"))

    def test_wrong_usage_is_code_2_and_the_schema_needs_no_stack(self, capsys: Any) -> None:
        for arguments in ([], ["m:1", "--checkpoint", "c0ffee00"], ["--checkpoint", "Coffee00"], ["m:0"]):
            assert run(["lineage", *arguments]) == 2, arguments
        assert run(["lineage", "--schema"]) == 0
        assert json.loads(capsys.readouterr().out)["title"] == "olivepress lineage"
