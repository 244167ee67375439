"""The client against a transport that answers as the API does: addresses, keys, errors, small files."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from olivepress import errors
from olivepress.client import Client
from olivepress.connection import Connection
from olivepress.errors import (
    BadArtifact,
    NotAllowed,
    NotFound,
    OlivepressError,
    PermanentError,
    ServiceUnavailable,
    UnknownRecipe,
)
from olivepress.manifest import parse_manifest
from olivepress.registry import parse_reference

URL = "http://127.0.0.1:8720"
MANIFEST = parse_manifest({"checkpoints": [{"path": "/models/a"}]})
Handler = Callable[[httpx.Request], httpx.Response]


def client_of(handler: Handler) -> Client:
    return Client(URL, "the-key", httpx.MockTransport(handler))


def problem(status: int, error_class: str, detail: str = "what, which, what now") -> httpx.Response:
    content = {"type": "x", "title": "x", "status": status, "detail": detail, "error_class": error_class}
    return httpx.Response(status, json=content, headers={"Content-Type": "application/problem+json"})


def write_server_file(data_dir: Path, key: str | None = "local-key") -> None:
    key_file = data_dir / "admin-key"
    if key is not None:
        key_file.write_text(key + "\n")
    server = {"url": f"{URL}/", "admin_key_file": str(key_file), "flower_url": "http://127.0.0.1:5555"}
    (data_dir / "server.json").write_text(json.dumps(server))


class TestPatience:
    def flaky(self, *failures: type[httpx.TransportError]) -> tuple[Client, list[str]]:
        """A client whose first requests fail so, and what was asked."""
        left, asked = list(failures), []

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request.method)
            if left:
                raise left.pop(0)("broken", request=request)
            return httpx.Response(200, json={"ok": True})

        return client_of(answer), asked

    def test_a_question_is_asked_again_where_the_connection_breaks(self) -> None:
        client, asked = self.flaky(httpx.ReadError, httpx.RemoteProtocolError)
        with client.patient([0.0, 0.0]):
            assert client.document("GET", "/v1/x") == {"ok": True}
        assert asked == ["GET"] * 3

    def test_patience_ends(self) -> None:
        client, asked = self.flaky(httpx.ReadError, httpx.ReadError)
        with client.patient([0.0]), pytest.raises(ServiceUnavailable, match="broke"):
            client.document("GET", "/v1/x")
        assert asked == ["GET"] * 2
        with pytest.raises(ServiceUnavailable):
            self.flaky(httpx.ReadError)[0].document("GET", "/v1/x")

    def test_nothing_is_ordered_twice(self) -> None:
        client, asked = self.flaky(httpx.ReadError)
        with client.patient([0.0]), pytest.raises(ServiceUnavailable):
            client.document("POST", "/v1/x")
        assert asked == ["POST"]

    def test_where_nobody_ever_answered_that_is_told_at_once(self) -> None:
        client, asked = self.flaky(httpx.ConnectError)
        with client.patient([0.0]), pytest.raises(ServiceUnavailable, match="is `olivepress up` running"):
            client.document("GET", "/v1/x")
        assert asked == ["GET"]

    def test_where_somebody_did_a_link_that_is_down_for_a_moment_is_waited_for(self) -> None:
        left = [None, httpx.ConnectError, None]

        def answer(request: httpx.Request) -> httpx.Response:
            if failure := left.pop(0):
                raise failure("down", request=request)
            return httpx.Response(200, json={})

        client = client_of(answer)
        with client.patient([0.0]):
            client.document("GET", "/v1/x")
            client.document("GET", "/v1/x")
        assert left == []

    def test_an_answer_that_is_an_error_is_not_asked_for_again(self) -> None:
        asked = []

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return problem(503, "ServiceUnavailable")

        client = client_of(answer)
        with client.patient([0.0]), pytest.raises(ServiceUnavailable):
            client.document("GET", "/v1/x")
        assert len(asked) == 1


class TestConnection:
    def test_the_stack_on_this_machine_is_found_by_its_server_file(self, tmp_path: Path) -> None:
        write_server_file(tmp_path)

        found = Connection.discover(environment={"OLIVEPRESS_DATA_DIR": str(tmp_path)})

        assert found == Connection(URL, "local-key", "http://127.0.0.1:5555")

    def test_the_environment_names_another_stack_and_key(self, tmp_path: Path) -> None:
        write_server_file(tmp_path)

        found = Connection.discover(
            tmp_path, {"OLIVEPRESS_URL": "https://press.example/", "OLIVEPRESS_API_KEY": "their-key"}
        )

        assert found == Connection("https://press.example", "their-key")

    def test_the_local_key_is_never_sent_to_another_stack(self, tmp_path: Path) -> None:
        write_server_file(tmp_path)

        found = Connection.discover(tmp_path, {"OLIVEPRESS_URL": "https://press.example"})

        assert found.key is None

    def test_a_key_in_the_environment_needs_no_key_file(self, tmp_path: Path) -> None:
        write_server_file(tmp_path, key=None)

        found = Connection.discover(tmp_path, {"OLIVEPRESS_API_KEY": "their-key"})

        assert (found.url, found.key) == (URL, "their-key")

    def test_without_a_stack_the_message_says_how_to_start_one(self, tmp_path: Path) -> None:
        with pytest.raises(ServiceUnavailable, match="is `olivepress up` running"):
            Connection.discover(tmp_path, {})

    def test_a_key_file_that_is_gone_is_named(self, tmp_path: Path) -> None:
        write_server_file(tmp_path, key=None)

        with pytest.raises(NotAllowed, match="admin-key"):
            Connection.discover(tmp_path, {})

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"url": 3}'])
    def test_a_broken_server_file_is_named(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "server.json").write_text(text)

        with pytest.raises(ServiceUnavailable, match=r"server\.json cannot be read"):
            Connection.discover(tmp_path, {})


class TestErrors:
    @pytest.mark.parametrize(
        "kind",
        [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, OlivepressError)],
    )
    def test_the_class_that_the_api_names_is_raised_with_its_message(self, kind: type[OlivepressError]) -> None:
        client = client_of(lambda request: problem(422, kind.__name__, "say it"))

        with pytest.raises(kind) as raised:
            client.job(1)

        assert type(raised.value) is kind
        assert str(raised.value) == "say it"

    def test_an_internal_error_is_one_that_may_pass(self) -> None:
        client = client_of(lambda request: problem(500, "InternalError"))

        with pytest.raises(ServiceUnavailable):
            client.recipes()

    @pytest.mark.parametrize("error_class", ["dict", "Any", "__name__", "TransientErrors"])
    def test_a_name_that_is_no_error_class_raises_nothing_strange(self, error_class: str) -> None:
        client = client_of(lambda request: problem(400, error_class))

        with pytest.raises(PermanentError):
            client.recipes()

    def test_an_answer_of_another_server_is_named_as_such(self) -> None:
        client = client_of(lambda request: httpx.Response(404, text="<html>nginx</html>"))

        with pytest.raises(PermanentError, match="not as olivepress does; check OLIVEPRESS_URL"):
            client.recipes()

    def test_a_success_of_another_server_is_no_success(self) -> None:
        client = client_of(lambda request: httpx.Response(200, text="<html>hello</html>"))

        with pytest.raises(ServiceUnavailable, match="check OLIVEPRESS_URL"):
            client.jobs()

    def test_a_refused_connection_says_what_to_start(self) -> None:
        def refuse(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("refused")

        with pytest.raises(ServiceUnavailable, match=f"nothing answers at {URL}; is `olivepress up` running"):
            client_of(refuse).batches()

    def test_a_slow_answer_is_named(self) -> None:
        def stall(request: httpx.Request) -> httpx.Response:
            raise httpx.ReadTimeout("slow")

        with pytest.raises(ServiceUnavailable, match="takes too long"):
            client_of(stall).batches()


class TestRequests:
    def test_every_request_carries_the_key(self) -> None:
        seen = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(request.headers["Authorization"])
            return httpx.Response(200, json=[])

        client_of(answer).workers()

        assert seen == ["Bearer the-key"]

    def test_a_lost_answer_to_a_submit_is_asked_for_again_under_the_same_key(self) -> None:
        keys = []

        def lose_the_first(request: httpx.Request) -> httpx.Response:
            keys.append(request.headers["Idempotency-Key"])
            if len(keys) == 1:
                raise httpx.RemoteProtocolError("lost")
            return httpx.Response(202, json={"id": 1, "jobs": [1], "state": "queued"})

        submitted = client_of(lose_the_first).submit(MANIFEST)

        assert submitted["id"] == 1
        assert len(keys) == 2
        assert keys[0] == keys[1]

    def test_a_refused_submit_is_not_repeated(self) -> None:
        asked = []

        def refuse(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return problem(422, "UnknownRecipe")

        with pytest.raises(UnknownRecipe):
            client_of(refuse).submit(MANIFEST)

        assert len(asked) == 1

    def test_all_pages_of_models_are_read(self) -> None:
        names = [f"m{number:05}" for number in range(2500)]

        def page(request: httpx.Request) -> httpx.Response:
            after, limit = request.url.params.get("after", ""), int(request.url.params["limit"])
            return httpx.Response(200, json=[{"name": name} for name in names if name > after][:limit])

        assert [model["name"] for model in client_of(page).models()] == names

    def test_filters_that_are_not_set_are_not_sent(self) -> None:
        seen = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(str(request.url.query, "ascii"))
            return httpx.Response(200, json=[])

        client_of(answer).jobs("legal", states=["failed", "running"], limit=5)

        assert seen == ["team=legal&state=failed&state=running&limit=5"]

    @pytest.mark.parametrize(("text", "path"), [("m", "latest"), ("m@production", "production"), ("m:3", "3")])
    def test_a_version_is_asked_for_by_number_or_alias(self, text: str, path: str) -> None:
        seen = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(request.url.path)
            return httpx.Response(200, json={})

        client_of(answer).version(parse_reference(text))

        assert seen == [f"/v1/models/m/versions/{path}"]


FILES = {"genai_config.json": b"{}", "tokenizer/merges.txt": b"a b\n" * 1000, "model.onnx.data": b"\x00\x01" * 70_000}


def version_of(files: dict[str, bytes]) -> dict[str, Any]:
    entries = [
        {"path": path, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in files.items()
    ]
    return {"model": "m", "team": "default", "number": 2, "version": "m:2", "files": entries}


def registry(files: dict[str, bytes], sent: dict[str, bytes] | None = None) -> Handler:
    """An API with one version of these files; `sent` is what it sends for some of them."""

    def answer(request: httpx.Request) -> httpx.Response:
        _, is_file, path = request.url.path.partition("/versions/2/files/")
        if not is_file:
            return httpx.Response(200, json=version_of(files))
        return httpx.Response(200, content=(sent or files)[path])

    return answer


class TestReadFile:
    def test_a_small_file_is_read_and_verified(self) -> None:
        client = client_of(registry(FILES, FILES | {"tokenizer/merges.txt": b"other"}))

        assert client.read_file(version_of(FILES), "genai_config.json") == b"{}"
        with pytest.raises(BadArtifact):
            client.read_file(version_of(FILES), "tokenizer/merges.txt")
        with pytest.raises(NotFound):
            client.read_file(version_of(FILES), "nothing.json")
