"""Recipes of a team's own: kept in versions, used by jobs, over HTTP and the command line."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from olivepress.cli import run
from olivepress.database import recipes as kept
from olivepress.database.sessions import Database
from olivepress.database.unblocking import job_facts
from olivepress.errors import BadManifest, BadRecipe, NotFound, UnknownRecipe
from olivepress.jobs import StepKind
from olivepress.recipes.files import parse_recipe
from olivepress.recipes.recipe import BUILT_IN, Recipe, RecipeReference
from tests.integration.api_cases import KEY, Api, api_over, served
from tests.integration.database_cases import claimed, job_of, on_both_databases, step_of, submit_paths, succeed
from tests.unit.test_olive_config import DOCUMENTED


def own(name: str = "ours", **keys: Any) -> Recipe:
    return parse_recipe({"name": name, "precision": "int4", **keys}, "a.yaml")


def add(database: Database, recipe: Recipe, team: str = "default") -> int:
    with database.write() as session:
        return kept.add(session, team, recipe).version


def remove(database: Database, name: str, version: int | None = None, team: str = "default") -> list[int]:
    with database.write() as session:
        return [recipe.version for recipe in kept.remove(session, team, RecipeReference(name, version))]


def look(database: Database, name: str, version: int | None = None, team: str = "default") -> Recipe:
    with database.read() as session:
        return kept.recipe(session, team, RecipeReference(name, version))


@on_both_databases
class TestVersions:
    def test_other_content_is_the_next_version_and_the_same_content_the_one_that_has_it(
        self, database: Database
    ) -> None:
        versions = [add(database, own(block_size=size)) for size in (32, 64, 64, 32)]

        assert versions == [1, 2, 2, 1]
        assert (look(database, "ours").block_size, look(database, "ours", 1).block_size) == (64, 32)

    def test_a_removed_version_is_not_offered_and_stays_readable_and_keeps_its_number(self, database: Database) -> None:
        for size in (32, 64):
            add(database, own(block_size=size))

        assert remove(database, "ours", 2) == [2]
        assert look(database, "ours").version == 1
        assert remove(database, "ours") == [1]
        with pytest.raises(NotFound, match="there is no recipe 'ours'"):
            look(database, "ours")
        assert look(database, "ours", 2).block_size == 64
        with pytest.raises(UnknownRecipe, match="there is no recipe 'ours'"):
            submit_paths(database, "/models/a", recipes=["ours@2"])
        assert add(database, own(block_size=128)) == 3
        assert add(database, own(block_size=64)) == 2

    def test_teams_do_not_see_each_others(self, database: Database) -> None:
        add(database, own(block_size=64), team="legal")

        assert add(database, own(block_size=128)) == 1
        assert look(database, "ours", team="legal").block_size == 64
        with pytest.raises(NotFound):
            remove(database, "ours", team="support")
        with pytest.raises(UnknownRecipe):
            submit_paths(database, "/models/a", recipes=["ours"], team="support")

    def test_a_built_in_one_stays(self, database: Database) -> None:
        with pytest.raises(BadRecipe, match="built-in"):
            remove(database, "cpu-int4")
        assert look(database, "cpu-int4", 1) == BUILT_IN["cpu-int4"]

    def test_a_job_keeps_the_version_that_it_was_submitted_with(self, database: Database) -> None:
        add(database, own(block_size=64))
        (job,) = submit_paths(database, "/models/a", recipes=["ours"])
        add(database, own(block_size=128))
        remove(database, "ours")

        stored = Recipe.from_dict(job_of(database, job).recipe)
        assert (stored.version, stored.block_size) == (1, 64)

    def test_names_versions_and_recipes_in_the_manifest_go_together(self, database: Database) -> None:
        for size in (64, 128):
            add(database, own(block_size=size))

        jobs = submit_paths(
            database,
            "/models/a",
            recipes=["cpu-int8", "ours@1", {"precision": "int4", "block_size": 256}],
            olive_config=DOCUMENTED,
        )

        recipes = [Recipe.from_dict(job_of(database, job).recipe) for job in jobs]
        assert [recipe.block_size for recipe in recipes] == [32, 64, 256, 128]
        assert [recipe.version for recipe in recipes] == [1, 1, 0, 0]
        assert recipes[3].notes

    def test_one_recipe_twice_in_a_batch_is_refused(self, database: Database) -> None:
        add(database, own())
        with pytest.raises(BadManifest, match="names the recipe 'ours' twice"):
            submit_paths(database, "/models/a", recipes=["ours", "ours@1"])


def test_a_workflow_that_is_a_built_in_recipe_shares_its_conversion(database: Database) -> None:
    by_name, by_file = submit_paths(database, "/models/a", recipes=["cpu-int4-128"], olive_config=DOCUMENTED)

    succeed(database, claimed(database, by_name, StepKind.INGEST))

    keys = {step_of(database, job, StepKind.CONVERT).key for job in (by_name, by_file)}
    assert len(keys) == 1 and None not in keys


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[Api]:
    with api_over(database, tmp_path) as api:
        yield api


class TestOverHttp:
    def test_a_recipe_is_kept_shown_listed_and_removed(self, api: Api) -> None:
        keys = {"name": "ours", "precision": "int4", "block_size": 64}

        created = api.http.post("/v1/recipes", json=keys)

        assert created.status_code == 201
        assert (created.json()["version"], created.json()["block_size"]) == (1, 64)
        assert api.get("/v1/recipes/ours") == api.get("/v1/recipes/ours@1") == created.json()
        assert [recipe["name"] for recipe in api.get("/v1/recipes")] == [*BUILT_IN, "ours"]
        assert api.http.delete("/v1/recipes/ours").json() == [created.json()]
        assert [recipe["name"] for recipe in api.get("/v1/recipes")] == [*BUILT_IN]

    def test_the_list_has_the_newest_version_of_each_and_a_team_its_own(self, api: Api) -> None:
        for size in (64, 128):
            api.http.post("/v1/recipes?team=legal", json={"name": "ours", "precision": "int4", "block_size": size})

        found = api.get("/v1/recipes", team="legal")[len(BUILT_IN) :]

        assert [(recipe["name"], recipe["version"]) for recipe in found] == [("ours", 2)]
        assert len(api.get("/v1/recipes")) == len(BUILT_IN)

    def test_the_schema_is_published(self, api: Api) -> None:
        assert "block_size" in api.get("/v1/recipes/schema")["properties"]

    @pytest.mark.parametrize(
        ("keys", "told"),
        [
            ({"precision": "int4"}, "name is missing"),
            ({"name": "cpu-int4", "precision": "int4"}, "is that of a built-in recipe"),
            ({"name": "ours", "precision": "int4", "gates": {"tokens": 1}}, "gates: there is no gate 'tokens'"),
            (
                {
                    "name": "ours",
                    "precision": "int4",
                    "olive_passes": {"after": [{"type": "A", "config": {"a": "\x00"}}]},
                },
                "no JSON value",
            ),
        ],
    )
    def test_a_wrong_one_is_told(self, api: Api, keys: dict[str, Any], told: str) -> None:
        answer = api.http.post("/v1/recipes", json=keys)

        assert (answer.status_code, answer.json()["error_class"]) == (422, "BadRecipe")
        assert told in answer.json()["detail"]

    @pytest.mark.parametrize("reference", ["nope", "cpu-int4@2", "cpu-int4@x", "@", "nope@99999999999"])
    def test_one_that_there_is_not_is_404(self, api: Api, reference: str) -> None:
        assert api.http.get(f"/v1/recipes/{reference}").status_code == 404

    def test_a_wrong_recipe_in_a_manifest_is_told_with_its_place(self, api: Api) -> None:
        body = {"checkpoints": [{"path": "/models/a"}], "recipes": [{"precision": "int4", "block_size": 48}]}

        answer = api.http.post("/v1/batches", json=body)

        assert (answer.status_code, answer.json()["error_class"]) == (422, "BadManifest")
        assert "recipes.0: the recipe: block_size is 48; choose one of: 16" in answer.json()["detail"]


@pytest.fixture
def stack(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """The API behind a socket, where the command line finds it."""
    with served(api.app) as url:
        monkeypatch.setenv("OLIVEPRESS_URL", url)
        monkeypatch.setenv("OLIVEPRESS_API_KEY", KEY)
        yield api


class TestCommands:
    def test_what_is_shown_can_be_changed_and_added(self, stack: Api, tmp_path: Path, capsys: Any) -> None:
        file = tmp_path / "ours.yaml"
        assert run(["recipes", "show", "cpu-int4-small"]) == 0
        file.write_text(capsys.readouterr().out.replace("cpu-int4-small", "ours").replace("size: 32", "size: 64"))

        assert run(["recipes", "add", str(file)]) == 0
        assert "kept as ours@1" in capsys.readouterr().out
        assert run(["recipes", "show", "ours", "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["block_size"], shown["summary"]) == (64, BUILT_IN["cpu-int4-small"].summary)
        assert run(["recipes"]) == 0
        assert "ours" in capsys.readouterr().out
        assert run(["recipes", "remove", "ours@1"]) == 0
        assert capsys.readouterr().out == "removed ours@1\n"
        assert run(["recipes", "show", "ours"]) == 4

    def test_content_that_is_not_the_newest_says_which_version_the_name_means(
        self, stack: Api, database: Database, tmp_path: Path, capsys: Any
    ) -> None:
        for size in (64, 128):
            add(database, own(block_size=size))
        file = tmp_path / "ours.json"
        file.write_text(json.dumps({"name": "ours", "precision": "int4", "block_size": 64}))

        assert run(["recipes", "add", str(file)]) == 0

        assert "ours alone means version 2; write ours@1" in capsys.readouterr().err

    def test_a_wrong_file_is_code_2_with_its_name(self, tmp_path: Path, capsys: Any) -> None:
        file = tmp_path / "ours.yaml"
        file.write_text("name: ours\nprecision: int4\nblock_size: 48\n")

        assert run(["recipes", "add", str(file)]) == 2

        assert capsys.readouterr().err.startswith(f"error: {file}, recipe 'ours': block_size is 48; choose one of: 16")

    def test_the_options_of_auto_opt_say_which_recipe_they_mean(self, stack: Api, capsys: Any) -> None:
        options = "--precision int4 --device cpu --provider CPUExecutionProvider --json"

        assert run(["submit", "/models/a", *options.split()]) == 0

        printed = capsys.readouterr()
        assert printed.err == "--precision int4 on CPU is the recipe cpu-int4\n"
        (job,) = stack.get(f"/v1/batches/{json.loads(printed.out)['id']}")["jobs"]
        assert job["recipe"] == "cpu-int4"

    def test_a_workflow_file_is_submitted_and_its_translations_are_told(
        self, stack: Api, tmp_path: Path, capsys: Any
    ) -> None:
        file = tmp_path / "finetuned_conversion_config.json"
        file.write_text(json.dumps(DOCUMENTED))

        assert run(["submit", "/models/a", "--olive-config", str(file), "--json"]) == 0

        printed = capsys.readouterr()
        assert "quantization_config.block_size: read as int4_block_size" in printed.err
        (job,) = json.loads(printed.out)["jobs"]
        settings = stack.get(f"/v1/jobs/{job}")["recipe_settings"]
        assert (settings["block_size"], settings["is_symmetric"]) == (128, False)

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"wings": 1}, "finetuned.json: wings is no key of a workflow"),
            ({"passes": {"b": {"type": "ModelBuilder", "foo": 1}}}, "passes.b.foo cannot be translated"),
        ],
    )
    def test_a_workflow_that_cannot_be_translated_is_code_2(
        self, tmp_path: Path, capsys: Any, change: dict[str, Any], told: str
    ) -> None:
        file = tmp_path / "finetuned.json"
        file.write_text(json.dumps(DOCUMENTED | change))

        assert run(["submit", "/models/a", "--olive-config", str(file)]) == 2
        assert told in capsys.readouterr().err

    def test_a_workflow_that_learns_from_text_needs_it_and_its_content_travels_to_the_job(
        self, stack: Api, database: Database, tmp_path: Path, capsys: Any
    ) -> None:
        passes = {"learn": {"type": "Gptq"}, "build": {"type": "ModelBuilder", "precision": "int4"}}
        file, text = tmp_path / "gptq.json", tmp_path / "legal.txt"
        file.write_text(json.dumps({"input_model": {"type": "HfModel"}, "passes": passes}))
        text.write_text("The court may wait.\n")

        assert run(["submit", "/models/a", "--olive-config", str(file)]) == 2
        assert "--calibration FILE" in capsys.readouterr().err

        options = ["--olive-config", str(file), "--calibration", str(text), "--json"]
        assert run(["submit", "/models/a", *options]) == 0
        printed = capsys.readouterr()
        assert "it learns from the text that is submitted as calibration" in printed.err
        (job,) = json.loads(printed.out)["jobs"]
        with database.read() as session:
            facts = job_facts(session, job)
        assert facts.calibration == [{"text": "The court may wait."}]
        kinds = [step["kind"] for step in stack.get(f"/v1/jobs/{job}")["steps"]]
        assert kinds[:3] == ["ingest", "quantize", "convert"]

    def test_without_a_directory_the_path_in_the_workflow_is_suggested(self, tmp_path: Path, capsys: Any) -> None:
        file = tmp_path / "finetuned.json"
        file.write_text(json.dumps(DOCUMENTED))

        assert run(["submit", "--olive-config", str(file)]) == 2
        assert "name a checkpoint's DIR, such as the ./finetuned" in capsys.readouterr().err


def test_notes_and_the_cap_of_a_recipe_do_not_enter_the_key_of_its_conversion(database: Database) -> None:
    plain, noted = own("plain"), replace(own("noted", context_length=512), notes=("a note",))
    for recipe in (plain, noted):
        add(database, recipe)
    first, second = submit_paths(database, "/models/a", recipes=["plain", "noted"])
    succeed(database, claimed(database, first, StepKind.INGEST))

    keys = {step_of(database, job, StepKind.CONVERT).key for job in (first, second)}
    assert len(keys) == 1
