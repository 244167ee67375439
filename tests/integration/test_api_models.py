"""Models, versions and their files over HTTP: what is served is what was published, byte for byte."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olivepress.database.sessions import Database
from olivepress.store.manifest import CHUNK_LIMIT_BYTES
from tests.integration.api_cases import PACKAGE, REPORT, Api, api_over, counted_queries, publish_job

OVERLAY = {"inference_model.json", "olivepress.json", "report.json", "SHA256SUMS"}


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[Api]:
    with api_over(database, tmp_path) as api:
        yield api


def publish(api: Api, *names: str, package: dict[str, bytes] = PACKAGE, **manifest: Any) -> list[int]:
    jobs: list[int] = api.submit(*(f"/models/{name}" for name in names), **manifest)["jobs"]
    for job_id in jobs:
        publish_job(api, job_id, package)
    return jobs


def chunk_files(api: Api, path: str) -> list[Path]:
    """Where the store keeps the chunks of a file of m-int4's newest version."""
    digest = api.get("/v1/models/m-int4/versions/latest")["artifact_digest"]
    chunks = api.store.manifest(digest).file(path).chunks
    return [api.store.root / "chunks" / chunk.sha256[:2] / chunk.sha256 for chunk in chunks]


class TestModels:
    def test_a_published_model_is_listed_with_its_newest_version(self, api: Api) -> None:
        publish(api, "m", alias="production")
        publish(api, "m", package=PACKAGE | {"new.txt": b"new"}, fresh=True)

        (model,) = api.get("/v1/models")

        assert (model["name"], model["versions"]) == ("m-int4", 2)
        assert model["aliases"] == {"latest": 2, "production": 1}
        assert model["newest"]["version"] == "m-int4:2"
        assert model["newest"]["figures"]["tokens_per_s"] == 412.3

    def test_a_model_shows_all_versions_with_their_aliases(self, api: Api) -> None:
        (first,) = publish(api, "m", alias="production")
        publish(api, "m", package=PACKAGE | {"new.txt": b"new"}, fresh=True)

        model = api.get("/v1/models/m-int4")

        assert [(version["number"], version["aliases"]) for version in model["versions"]] == [
            (2, ["latest"]),
            (1, ["production"]),
        ]
        assert model["versions"][1]["job_id"] == first

    def test_the_list_is_paged_by_name(self, api: Api) -> None:
        publish(api, "c", "a", "b")

        first = api.get("/v1/models", limit=2)
        second = api.get("/v1/models", limit=2, after=first[-1]["name"])

        assert [model["name"] for model in first + second] == ["a-int4", "b-int4", "c-int4"]

    def test_the_number_of_queries_does_not_grow_with_the_models(self, api: Api) -> None:
        publish(api, "a")
        with counted_queries(api.database.engine) as few:
            api.get("/v1/models")
        publish(api, "b", "c", "d")
        with counted_queries(api.database.engine) as many:
            assert len(api.get("/v1/models")) == 4

        assert len(few) == len(many) < 8

    def test_teams_do_not_see_each_others_models(self, api: Api) -> None:
        publish(api, "m", team="legal")

        assert api.get("/v1/models") == []
        assert api.http.get("/v1/models/m-int4").status_code == 404
        assert api.http.get("/v1/models/m-int4/versions/1").status_code == 404
        assert [model["name"] for model in api.get("/v1/models", team="legal")] == ["m-int4"]


class TestVersion:
    def test_it_carries_report_provenance_and_files(self, api: Api) -> None:
        publish(api, "m")

        version = api.get("/v1/models/m-int4/versions/1")

        assert version["version"] == "m-int4:1"
        assert version["report"] == REPORT
        assert version["provenance"]["checkpoint"]["name"] == "m"
        assert {file["path"] for file in version["files"]} == set(PACKAGE) | OVERLAY
        sizes = {file["path"]: file["size_bytes"] for file in version["files"]}
        assert sum(sizes.values()) == version["size_bytes"]

    def test_a_number_and_an_alias_lead_to_the_same_version(self, api: Api) -> None:
        publish(api, "m")

        assert api.get("/v1/models/m-int4/versions/latest") == api.get("/v1/models/m-int4/versions/1")

    @pytest.mark.parametrize("ref", ["2", "0", "production", "99999999999999999999", "-1", "1.0"])
    def test_a_version_that_there_is_not_is_404(self, api: Api, ref: str) -> None:
        publish(api, "m")

        answer = api.http.get(f"/v1/models/m-int4/versions/{ref}")

        assert (answer.status_code, answer.json()["error_class"]) == (404, "NotFound")


class TestFiles:
    def test_every_file_arrives_with_its_length_and_digest(self, api: Api) -> None:
        publish(api, "m")

        for file in api.get("/v1/models/m-int4/versions/latest")["files"]:
            answer = api.http.get(f"/v1/models/m-int4/versions/latest/files/{file['path']}")

            assert answer.status_code == 200
            assert answer.headers["Content-Length"] == str(file["size_bytes"]) == str(len(answer.content))
            assert answer.headers["ETag"] == f'"{file["sha256"]}"'
            assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
            assert answer.content == PACKAGE.get(file["path"], answer.content)

    def test_a_file_that_the_caller_has_is_not_sent_again(self, api: Api) -> None:
        publish(api, "m")
        place = "/v1/models/m-int4/versions/1/files/genai_config.json"
        etag = api.http.get(place).headers["ETag"]

        assert api.http.get(place, headers={"If-None-Match": etag}).status_code == 304
        assert api.http.get(place, headers={"If-None-Match": '"other"'}).status_code == 200

    @pytest.mark.parametrize(
        "path",
        ["nothing.txt", "tokenizer", "../manifests", "..%2F..%2Fstore", "%2Fetc%2Fpasswd", "a.json%00", "tokenizer//a"],
    )
    def test_only_files_of_the_manifest_are_served(self, api: Api, path: str) -> None:
        publish(api, "m")

        answer = api.http.get(f"/v1/models/m-int4/versions/1/files/{path}")

        assert (answer.status_code, answer.json()["error_class"]) == (404, "NotFound")

    def test_a_damaged_file_is_an_error_and_not_served(self, api: Api) -> None:
        publish(api, "m")
        (chunk,) = chunk_files(api, "tokenizer/merges.txt")
        chunk.chmod(0o600)
        chunk.write_bytes(b"x" * chunk.stat().st_size)

        answer = api.http.get("/v1/models/m-int4/versions/1/files/tokenizer/merges.txt")

        assert (answer.status_code, answer.json()["error_class"]) == (500, "BadArtifact")
        assert "damaged" in answer.json()["detail"]

    def test_a_file_that_is_damaged_further_on_never_arrives_whole(self, api: Api) -> None:
        weights = bytes(range(256)) * (CHUNK_LIMIT_BYTES // 256) + b"the second chunk"
        publish(api, "m", package=PACKAGE | {"model.onnx.data": weights})
        chunk = chunk_files(api, "model.onnx.data")[1]
        chunk.chmod(0o600)
        chunk.write_bytes(b"x" * chunk.stat().st_size)

        answer = api.http.get("/v1/models/m-int4/versions/1/files/model.onnx.data")

        assert int(answer.headers["Content-Length"]) == len(weights)
        assert len(answer.content) < len(weights)
