"""The API's contract that holds on every route: the key, errors, limits, documentation."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy.exc import OperationalError

from api import errors as api_errors
from api.app import create_app
from api.security import MAX_BODY_BYTES
from olivepress import errors
from olivepress.database import views
from olivepress.database.sessions import Database
from olivepress.errors import NotAllowed, OlivepressError
from olivepress.settings import Settings
from olivepress.store import DirectoryStore
from tests.integration.api_cases import KEY, Api, api_over


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[Api]:
    with api_over(database, tmp_path) as api:
        yield api


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def is_problem(answer: Any, status: int, error_class: str) -> bool:
    content = answer.json()
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert set(content) == {"type", "title", "status", "detail", "error_class"}
    assert (answer.status_code, content["status"], content["error_class"]) == (status, status, error_class), content
    return True


class TestKey:
    @pytest.mark.parametrize(
        "header", [b"", b"Bearer", b"Bearer wrong", f"Basic {KEY}".encode(), KEY.encode(), b"Bearer \xfcml\xe4ut"]
    )
    def test_without_the_right_key_no_route_answers(self, api: Api, header: bytes) -> None:
        for method, path, _ in operations(api.get("/openapi.json")):
            if path.startswith("/v1"):
                concrete = re.sub(r"\{\w*id\}", "1", path)

                answer = api.http.request(method, concrete, headers=[(b"Authorization", header)])

                assert is_problem(answer, 401, "NotAllowed"), (method, path)
                assert answer.headers["WWW-Authenticate"] == "Bearer"

    def test_a_request_without_any_key_is_told_which_to_send(self, api: Api) -> None:
        answer = TestClient(api.app).get("/v1/jobs")

        assert is_problem(answer, 401, "NotAllowed")
        assert "OLIVEPRESS_API_KEY" in answer.json()["detail"]

    @pytest.mark.parametrize("key", [None, SecretStr("")])
    def test_without_an_admin_key_the_api_does_not_start(
        self, database: Database, tmp_path: Path, key: SecretStr | None
    ) -> None:
        with pytest.raises(NotAllowed, match="OLIVEPRESS_ADMIN_KEY"):
            create_app(Settings(admin_key=key), database, DirectoryStore(tmp_path / "store"), lambda: None)

    def test_health_is_open_and_tells_no_secret(self, api: Api) -> None:
        answer = api.http.get("/healthz", headers={"Authorization": ""})

        assert answer.status_code == 200
        assert set(answer.json()) == {"status", "version", "database", "scheduler_alive", "workers_alive"}


class TestDocumentation:
    def test_it_is_open_on_loopback(self, api: Api) -> None:
        for path in ("/docs", "/openapi.json"):
            assert api.http.get(path, headers={"Authorization": ""}).status_code == 200

    def test_it_is_closed_beyond_loopback(self, database: Database, tmp_path: Path) -> None:
        settings = Settings(admin_key=SecretStr(KEY), api_host="0.0.0.0")
        app = create_app(settings, database, DirectoryStore(tmp_path / "store"), lambda: None)

        with TestClient(app) as http:
            assert [http.get(path).status_code for path in ("/docs", "/openapi.json")] == [404] * 2

    def test_every_operation_has_a_summary_a_tag_and_its_errors(self, api: Api) -> None:
        for method, path, operation in operations(api.get("/openapi.json")):
            place = f"{method} {path}"
            assert operation["summary"], place
            assert operation["description"], place
            assert len(operation["tags"]) == 1, place
            if path.startswith("/v1"):
                assert {"401", "404", "422", "503"} <= set(operation["responses"]), place
                assert list(operation["responses"]["422"]["content"]) == ["application/problem+json"], place


class TestErrors:
    @pytest.mark.parametrize(
        ("kind", "status"),
        [
            (errors.NotFound, 404),
            (errors.NotAllowed, 401),
            (errors.BadManifest, 422),
            (errors.UnknownRecipe, 422),
            (errors.PathNotAllowed, 422),
            (errors.IllegalTransition, 409),
            (errors.BadArtifact, 500),
            (errors.DiskFull, 507),
            (errors.ServiceUnavailable, 503),
            (errors.RuntimeCrashed, 503),
        ],
    )
    def test_every_class_has_its_status(self, kind: type[OlivepressError], status: int) -> None:
        assert api_errors.status_of(kind("x")) == status

    def test_no_class_is_without_a_status(self) -> None:
        kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, OlivepressError)]

        assert all(api_errors.status_of(kind("x")) >= 400 for kind in kinds if kind is not OlivepressError)

    def test_an_unknown_route_is_a_problem_that_names_it(self, api: Api) -> None:
        answer = api.http.get("/v1/nothing")

        assert is_problem(answer, 404, "NotFound")
        assert "GET /v1/nothing" in answer.json()["detail"]

    def test_a_wrong_method_is_a_problem(self, api: Api) -> None:
        assert is_problem(api.http.delete("/v1/batches"), 405, "PermanentError")

    @pytest.mark.parametrize(
        ("path", "name"),
        [
            ("/jobs/0", "job_id"),
            ("/jobs/first", "job_id"),
            ("/jobs/99999999999999999999", "job_id"),
            ("/jobs?limit=0", "limit"),
            ("/jobs?state=odd", "state"),
            ("/jobs?team=a%00b", "team"),
            ("/models/a%00b", "name"),
        ],
    )
    def test_a_wrong_parameter_is_named(self, api: Api, path: str, name: str) -> None:
        answer = api.http.get(f"/v1{path}")

        assert is_problem(answer, 422, "PermanentError")
        assert answer.json()["detail"].startswith(f"{name}")

    def test_a_database_that_is_away_is_503_and_says_so(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        def away(*_: Any) -> None:
            raise OperationalError("SELECT 1", {}, Exception("unable to open database file"))

        monkeypatch.setattr(views, "workers", away)

        answer = api.http.get("/v1/workers")

        assert is_problem(answer, 503, "ServiceUnavailable")
        assert answer.headers["Retry-After"]
        assert api.http.get("/healthz").json()["status"] == "down"
        assert api.http.get("/healthz").status_code == 503

    def test_a_bug_is_500_without_its_traceback(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        def break_down(*_: Any) -> None:
            raise ZeroDivisionError("secret detail")

        monkeypatch.setattr(views, "workers", break_down)

        answer = api.http.get("/v1/workers")

        assert is_problem(answer, 500, "InternalError")
        assert "secret detail" not in answer.text


class TestBodyLimit:
    def test_a_body_that_states_too_large_a_size_is_refused(self, api: Api) -> None:
        answer = api.http.post("/v1/batches", content=b" " * (MAX_BODY_BYTES + 1))

        assert is_problem(answer, 413, "BadManifest")
        assert "16 MiB" in answer.json()["detail"]

    def test_a_body_that_states_no_size_is_refused_when_it_becomes_too_large(self, api: Api) -> None:
        pieces = (b" " * 2**20 for _ in range(17))

        assert is_problem(api.http.post("/v1/batches", content=pieces), 413, "BadManifest")

    def test_a_body_of_just_the_limit_is_read(self, api: Api) -> None:
        body = b'{"checkpoints": [{"path": "/models/a"}]}'

        answer = api.http.post(
            "/v1/batches", content=body.ljust(MAX_BODY_BYTES), headers={"Content-Type": "application/json"}
        )

        assert answer.status_code == 202
