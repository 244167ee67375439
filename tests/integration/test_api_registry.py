"""Search, aliases, deprecation and deletion over HTTP, through the client, and on the command line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olivepress.cli import orders, run
from olivepress.client import Client
from olivepress.database import version_flags
from olivepress.database.sessions import Database
from olivepress.database.versions import find_version
from olivepress.errors import BadManifest, Guarded, NotFound, PermanentError
from olivepress.registry import Order, VerdictKind, VersionFlag, VersionSearch
from tests.integration.api_cases import KEY, Api, api_over, counted_queries, served
from tests.integration.registry_cases import ANNA, FORCE, publish, version

FAILED = {"gates": [{"name": "prompts_passed", "verdict": "failed"}]}


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[Api]:
    with api_over(database, tmp_path) as api:
        yield api


@pytest.fixture
def client(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client over a real socket; the command line finds the same stack, and is used by Carla."""
    monkeypatch.setattr(orders.getpass, "getuser", lambda: "carla")
    with served(api.app) as url, Client(url, KEY) as client:
        monkeypatch.setenv("OLIVEPRESS_URL", url)
        monkeypatch.setenv("OLIVEPRESS_API_KEY", KEY)
        yield client


def shelf(database: Database) -> None:
    """Four models: two families, three precisions, one that failed, one deprecated, one flagged."""
    named = {"checkpoint": {"name": "Support_DE"}}
    publish(database, "1", name="support-int4", provenance=named)
    publish(database, "2", name="support-int4", provenance=named)
    publish(database, "3", name="legal-int8", precision="int8", family="llama")
    publish(database, "4", name="legal-fp16", precision="fp16", family="llama", report=FAILED)
    publish(database, "5", name="tales-int4")
    publish(database, "6", name="tales-int4")
    with database.write() as session:
        version_flags.deprecate(session, "default", version("support-int4:1"), Order("anna", "old"), None)
        _, flagged = find_version(session, "default", version("legal-int8:1"))
        version_flags.flag(session, flagged.id, VersionFlag.DAMAGED, "a chunk is gone")


class TestSearch:
    def test_models_that_have_such_a_version_are_found_with_the_newest_of_those(self, api: Api, client: Client) -> None:
        shelf(api.database)

        for search, found in [
            (VersionSearch(family="llama"), ["legal-fp16:1", "legal-int8:1"]),
            (VersionSearch(precision="int4"), ["support-int4:2", "tales-int4:2"]),
            (VersionSearch(verdict=VerdictKind.FAILED), ["legal-fp16:1"]),
            (VersionSearch(verdict=VerdictKind.PASSED, family="llama"), ["legal-int8:1"]),
            # The second version of each has 2000 bytes.
            (VersionSearch(largest_bytes=1000, precision="int4"), ["support-int4:1", "tales-int4:1"]),
            (VersionSearch(largest_bytes=999), []),
            (VersionSearch(text="SUP"), ["support-int4:2"]),
            (VersionSearch(text="port_d"), ["support-int4:2"]),
            (VersionSearch(text="port%d"), []),
            (VersionSearch(is_deprecated=True), ["support-int4:1"]),
            (VersionSearch(is_deprecated=False, family="qwen2"), ["support-int4:2", "tales-int4:2"]),
            (VersionSearch(is_flagged=True), ["legal-int8:1"]),
            (VersionSearch(is_flagged=False, family="llama"), ["legal-fp16:1"]),
        ]:
            assert [model["newest"]["version"] for model in client.models(search=search)] == found, search

    def test_deleted_versions_are_found_only_when_they_are_asked_for(self, api: Api, client: Client) -> None:
        shelf(api.database)
        client.delete_version(version("legal-int8:1"), FORCE)

        assert "legal-int8" not in [model["name"] for model in client.models(search=VersionSearch(family="llama"))]
        (model,) = client.models(search=VersionSearch(is_deleted=True))
        assert (model["newest"]["version"], model["newest"]["deleted"]["deleted_by"]) == ("legal-int8:1", "ben")
        # Listed without a search, the name is still there: its numbers are taken.
        empty = next(model for model in client.models() if model["name"] == "legal-int8")
        assert (empty["versions"], empty["newest"]) == (0, None)

    def test_a_search_is_paged_by_name(self, api: Api) -> None:
        for number in range(5):
            publish(api.database, str(number), name=f"m{number}-int4", family="llama" if number % 2 else "qwen2")

        first = api.get("/v1/models", family="qwen2", limit=2)
        second = api.get("/v1/models", family="qwen2", limit=2, after=first[-1]["name"])

        assert [model["name"] for model in first + second] == ["m0-int4", "m2-int4", "m4-int4"]

    def test_the_number_of_queries_does_not_grow_with_what_is_found(self, api: Api) -> None:
        publish(api.database, "a")
        with counted_queries(api.database.engine) as few:
            api.get("/v1/models", family="qwen2")
        for number in range(4):
            publish(api.database, "a", name=f"m{number}-int4")
        with counted_queries(api.database.engine) as many:
            assert len(api.get("/v1/models", family="qwen2")) == 5

        assert len(few) == len(many) < 8

    def test_versions_of_one_model_are_searched_too(self, api: Api, client: Client) -> None:
        shelf(api.database)

        found = client.model("support-int4", search=VersionSearch(is_deprecated=True))

        assert [one["version"] for one in found["versions"]] == ["support-int4:1"]

    def test_what_cannot_be_searched_for_is_422_and_a_nul_finds_nothing(self, api: Api) -> None:
        for params in ({"verdict": "good"}, {"max_size": "-1"}, {"max_size": "big"}, {"text": ""}):
            assert api.http.get("/v1/models", params=params).status_code == 422, params
        assert api.get("/v1/models", text="a\0") == []


class TestChanges:
    def test_a_promotion_its_history_and_the_way_back(self, api: Api, client: Client) -> None:
        publish(api.database, "a")
        publish(api.database, "b")
        client.promote(version("m-int4:1"), "production", Order("anna", "the pilot"))
        moved = client.promote(version("m-int4@latest"), "production", ANNA)

        assert (moved["from_number"], moved["number"], moved["is_moved"]) == (1, 2, True)
        (alias,) = [one for one in client.aliases("m-int4")["aliases"] if one["alias"] == "production"]
        assert (alias["version"], alias["moved_by"]) == ("m-int4:2", "anna")
        assert client.roll_back("m-int4", "production", ANNA)["number"] == 1
        moves = client.alias_history("m-int4", "production", limit=2)
        assert [move["cause"] for move in moves] == ["rolled_back", "promoted"]
        (oldest,) = client.alias_history("m-int4", "production", before=moves[-1]["id"])
        assert (oldest["to_number"], oldest["reason"]) == (1, "the pilot")

    def test_a_guarded_version_is_409_and_force_keeps_what_was_overridden(self, api: Api, client: Client) -> None:
        publish(api.database, "a", flags={VersionFlag.UNVALIDATED: "imported"})
        place = "/v1/models/m-int4/aliases/production"

        answer = api.http.put(place, json={"version": "1", "reason": "please"})
        assert (answer.status_code, answer.json()["error_class"]) == (409, "Guarded")
        with pytest.raises(Guarded, match="never validated"):
            client.promote(version("m-int4:1"), "production", ANNA)
        assert api.http.put(place, json={"version": "1", "force": True}).json()["error_class"] == "BadManifest"

        moved = client.promote(version("m-int4:1"), "production", FORCE)
        assert moved["overridden"] == ["it was imported and never validated (imported)"]

    def test_without_a_name_the_team_is_who_did_it(self, api: Api, client: Client) -> None:
        publish(api.database, "a")
        assert api.http.put("/v1/models/m-int4/aliases/production", json={"version": "1"}).status_code == 200
        assert client.alias_history("m-int4", "production")[0]["moved_by"] == "team default"

    def test_deprecation_and_its_undoing(self, api: Api, client: Client) -> None:
        publish(api.database, "a")
        publish(api.database, "b")

        told = client.deprecate(version("m-int4:1"), Order("anna", "too terse"), "m-int4:2")

        assert (told["deprecated"]["reason"], told["deprecated"]["successor"]) == ("too terse", "m-int4:2")
        assert [client.undeprecate(version("m-int4:1"))["was_undone"] for _ in range(2)] == [True, False]
        with pytest.raises(BadManifest, match="say why"):
            client.deprecate(version("m-int4:1"), ANNA)

    def test_deletion_and_its_undoing(self, api: Api, client: Client) -> None:
        publish(api.database, "a")
        publish(api.database, "b")
        with pytest.raises(Guarded, match="the alias 'latest' points to it"):
            client.delete_version(version("m-int4:2"), ANNA)

        deleted = client.delete_version(version("m-int4:2"), FORCE)

        assert (deleted["version"], deleted["aliases"]) == ("m-int4:2", {"latest": 1})
        for path in ("", "/manifest", "/files/genai_config.json", "/report"):
            answer = api.http.get(f"/v1/models/m-int4/versions/2{path}")
            assert (answer.status_code, answer.json()["error_class"]) == (404, "NotFound")
            assert "undelete" in answer.json()["detail"]
        assert client.undelete_version(version("m-int4:2"))["was_undone"]
        with pytest.raises(PermanentError, match="is not deleted"):
            client.undelete_version(version("m-int4:2"))

    def test_what_is_not_there_is_404(self, api: Api) -> None:
        publish(api.database, "a")
        for method, path, body in (
            ("put", "aliases/production", {"version": "9"}),
            ("put", "aliases/production", {"version": "99999999999999"}),
            ("post", "aliases/production/back", {}),
            ("put", "versions/9/deprecation", {"reason": "old"}),
            ("post", "versions/9/delete", {}),
            ("post", "versions/9/undelete", None),
        ):
            assert api.http.request(method, f"/v1/models/m-int4/{path}", json=body).status_code == 404, path

    def test_a_malformed_change_is_422_and_changes_nothing(self, api: Api) -> None:
        publish(api.database, "a")
        one = {"version": "1"}
        for body in ({}, one | {"force": "so"}, one | {"odd": 1}, one | {"reason": "a\nb"}, one | {"by": ""}):
            assert api.http.put("/v1/models/m-int4/aliases/production", json=body).status_code == 422, body
        assert [one["alias"] for one in api.get("/v1/models/m-int4/aliases")["aliases"]] == ["latest"]


class TestCommands:
    def test_promote_says_where_it_points_and_pointed(self, api: Api, client: Client, capsys: Any) -> None:
        publish(api.database, "a")
        publish(api.database, "b")

        assert run(["promote", "m-int4:1", "production", "--reason", "the pilot"]) == 0
        assert capsys.readouterr().out == "m-int4@production points to version 1 now\n"
        assert run(["promote", "m-int4", "production"]) == 0
        assert capsys.readouterr().out == "m-int4@production points to version 2 now (before: 1)\n"
        assert run(["promote", "m-int4@production", "--back", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["number"] == 1
        assert run(["promote", "m-int4:1", "production"]) == 0
        assert capsys.readouterr().out == "m-int4@production points there already\n"

    def test_aliases_show_the_history_with_who_and_why(self, api: Api, client: Client, capsys: Any) -> None:
        publish(api.database, "a", flags={VersionFlag.FORCED: "2 of 8"})
        assert run(["promote", "m-int4:1", "production"]) == 1
        assert "published by force (2 of 8)" in capsys.readouterr().err
        assert run(["promote", "m-int4:1", "production", "--force"]) == 2
        assert run(["promote", "m-int4:1", "production", "--force", "--reason", "it must go out"]) == 0
        assert "overridden: it was published by force (2 of 8)" in capsys.readouterr().err

        assert run(["aliases", "m-int4"]) == 0

        shown = capsys.readouterr().out
        line = " ".join(shown.split())
        assert "carla it must go out; although it was published by force (2 of 8)" in line
        assert max(map(len, shown.splitlines())) <= 100
        assert run(["aliases", "m-int4", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["history"][0]["moved_by"] == "carla"

    def test_a_deprecated_version_is_shown_as_such(self, api: Api, client: Client, capsys: Any) -> None:
        publish(api.database, "a")
        publish(api.database, "b")
        command = ["deprecate", "m-int4:1", "--reason", "too terse", "--successor", "m-int4:2"]

        assert run(command) == 0
        assert capsys.readouterr().out == "m-int4:1 is deprecated\n"
        assert run(["models", "m-int4"]) == 0
        assert "m-int4:1: it is deprecated (too terse; use m-int4:2)" in capsys.readouterr().out
        # Not the newest: a list of models says nothing of it, unless it is what is searched for.
        assert run(["models"]) == 0
        assert "deprecated" not in capsys.readouterr().out
        assert run(["models", "--deprecated"]) == 0
        assert "m-int4:1: it is deprecated" in capsys.readouterr().out
        assert run(["deprecate", "m-int4:1", "--undo"]) == 0
        assert capsys.readouterr().out == "m-int4:1 is not deprecated any more\n"

    def test_delete_and_undelete(self, api: Api, client: Client, capsys: Any) -> None:
        publish(api.database, "a")
        publish(api.database, "b")
        assert run(["delete", "m-int4:2"]) == 1
        assert "the alias 'latest' points to it" in capsys.readouterr().err

        assert run(["delete", "m-int4:2", "--force", "--reason", "wrong data"]) == 0
        shown = capsys.readouterr().out
        assert "m-int4@latest points to version 1 now\n" in shown
        assert "it can be brought back until" in shown
        assert run(["models", "m-int4", "--deleted"]) == 0
        assert "m-int4:2: it was deleted by carla (wrong data)" in capsys.readouterr().out
        assert run(["undelete", "m-int4:2"]) == 0
        assert capsys.readouterr().out.startswith("m-int4:2 is back, without aliases")

    def test_a_search_finds_or_says_that_it_does_not(self, api: Api, client: Client, capsys: Any) -> None:
        shelf(api.database)

        assert (
            run(
                [
                    "models",
                    "--family",
                    "qwen2",
                    "--precision",
                    "int4",
                    "--verdict",
                    "passed",
                    "--max-size",
                    "1kB",
                    "--json",
                ]
            )
            == 0
        )
        found = json.loads(capsys.readouterr().out)
        assert [model["newest"]["version"] for model in found] == ["support-int4:1", "tales-int4:1"]
        assert run(["models", "--text", "nothing"]) == 0
        assert "no model with such a version" in capsys.readouterr().err

    def test_wrong_usage_is_code_2(self, api: Api, client: Client, capsys: Any) -> None:
        publish(api.database, "a")
        for command in (
            "models --max-size many",
            "models --verdict good",
            "delete m-int4",
            "delete m-int4@latest",
            "deprecate m-int4:1",
            "promote m-int4:1",
            "promote m-int4:1 production --back",
            "promote m-int4:1 Production",
        ):
            assert run(command.split()) == 2, command
            assert capsys.readouterr().out == ""

    def test_what_is_not_there_is_code_4(self, client: Client, capsys: Any) -> None:
        for command in ("promote m:1 production", "aliases m", "delete m:1", "undelete m:1", "deprecate m:1 --undo"):
            assert run(command.split()) == 4, command
            assert "has no model 'm'" in capsys.readouterr().err

    def test_a_user_without_a_name_is_somebody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def nobody() -> str:
            raise KeyError("uid not found")

        monkeypatch.setattr(orders.getpass, "getuser", nobody)
        assert orders.order("why").by == "somebody"


def test_a_search_of_another_team_finds_nothing(api: Api, client: Client) -> None:
    shelf(api.database)
    assert client.models("legal", VersionSearch(family="qwen2")) == []
    with pytest.raises(NotFound, match="team 'legal'"):
        client.aliases("m-int4", "legal")
