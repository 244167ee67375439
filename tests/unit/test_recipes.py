"""Recipes as data: what they may say, how they are written, and which conversions they share."""

import json
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from olivepress.errors import BadRecipe, UnknownRecipe
from olivepress.jobs import StepKind
from olivepress.recipes.auto_opt import recipe_for
from olivepress.recipes.files import (
    content_digest,
    parse_recipe,
    read_mapping,
    schema,
    to_keys,
    to_yaml,
)
from olivepress.recipes.keys import RecipeKeys
from olivepress.recipes.recipe import BUILT_IN, ExecutionProvider, Precision, Recipe, recipe_named
from olivepress.steps import JobFacts, StepResult, spec_of

# As every release so far wrote them into step keys: a change would convert everything anew.
KEPT_OPTIONS = {
    "cpu-int4": {
        "precision": "int4",
        "block_size": 32,
        "is_symmetric": False,
        "algorithm": "default",
        "mixed_precision": "last_matmul:int8,mixed_layers:int8",
        "accuracy_level": 4,
        "execution_provider": "cpu",
    },
    "cpu-fp32": {
        "precision": "fp32",
        "block_size": None,
        "is_symmetric": True,
        "algorithm": "default",
        "mixed_precision": None,
        "accuracy_level": 4,
        "execution_provider": "cpu",
    },
}
STORED_BY_THE_FIRST_RELEASE: dict[str, Any] = {
    "name": "cpu-int8",
    "version": 1,
    "summary": "s",
    "precision": "int8",
    "block_size": 32,
    "is_symmetric": True,
    "algorithm": "default",
    "mixed_precision": None,
    "accuracy_level": 4,
    "execution_provider": "cpu",
    "foundry": {"max_length": 2048, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1},
    "gates": {"certificate_required": True, "min_prompts_passed": 0.8},
}
PASSES = {"after": [{"type": "OnnxDynamicQuantization", "config": {"per_channel": True}}], "builder_precision": "fp32"}


def own(**keys: Any) -> Recipe:
    return parse_recipe({"precision": "int4", **keys}, "a.yaml")


class TestRecipes:
    @pytest.mark.parametrize("name", sorted(KEPT_OPTIONS))
    def test_what_decides_the_bytes_is_as_it_was(self, name: str) -> None:
        assert BUILT_IN[name].build_options() == KEPT_OPTIONS[name]

    def test_what_the_first_release_stored_in_a_job_can_be_read(self) -> None:
        assert Recipe.from_dict(STORED_BY_THE_FIRST_RELEASE).build_options() == BUILT_IN["cpu-int8"].build_options()

    @pytest.mark.parametrize(
        "recipe", [*BUILT_IN.values(), own(precision="int8", olive_passes=PASSES), own(nodes_to_exclude=["/a"])]
    )
    def test_what_is_stored_is_read_back(self, recipe: Recipe) -> None:
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe

    def test_the_built_in_recipes_cover_every_precision_and_each_says_when_to_use_it(self) -> None:
        assert set(BUILT_IN) == {"cpu-int4", "cpu-int4-small", "cpu-int4-128", "cpu-int8", "cpu-fp16", "cpu-fp32"}
        assert {recipe.precision for recipe in BUILT_IN.values()} == set(Precision)
        assert len({recipe.summary for recipe in BUILT_IN.values()}) == len(BUILT_IN)

    def test_a_name_means_the_newest_version_and_a_version_can_be_named(self) -> None:
        versions = {"ours": [replace(own(), name="ours", version=number) for number in (1, 3, 2)]}

        assert recipe_named("ours", versions).version == 3
        assert recipe_named("ours@2", versions).version == 2
        assert recipe_named("cpu-int4@1").name == "cpu-int4"

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("cpu-int5", r"did you mean 'cpu-int(4|8)'\? choose one of: cpu-fp16, "),
            ("cpu-int4@2", "there is no cpu-int4@2; there is: cpu-int4@1"),
            ("cpu-int4@one", "write cpu-int4, or cpu-int4@1"),
            ("cpu-int4@0", "names no version"),
        ],
    )
    def test_a_recipe_that_there_is_not_is_told_with_those_that_there_are(self, text: str, told: str) -> None:
        with pytest.raises(UnknownRecipe, match=told):
            recipe_named(text)

    def test_a_cap_of_the_context_reaches_the_package_and_never_widens_it(self) -> None:
        def packaged(cap: int | None) -> int:
            facts = JobFacts(1, "/m", None, own(context_length=cap), [], None)
            ingested = StepResult({"context_length": 4096, "family": "qwen2"})
            length = spec_of(StepKind.PACKAGE, facts, {StepKind.INGEST: ingested})["context_length"]
            assert isinstance(length, int)
            return length

        assert [packaged(cap) for cap in (None, 1024, 100_000)] == [4096, 1024, 4096]


class TestSharing:
    def test_equal_recipes_of_any_name_share_their_conversion(self) -> None:
        keys = to_keys(BUILT_IN["cpu-int4"]) | {"name": "ours", "summary": "Ours.", "gates": {}}

        assert parse_recipe(keys, "a.yaml").build_options() == BUILT_IN["cpu-int4"].build_options()

    def test_two_ways_to_write_mixed_k_quant_are_one_conversion(self) -> None:
        spelt_out = own(algorithm="k_quant", mixed_precision="mixed_layers:int8, last_matmul:int8")

        assert own(algorithm="k_quant_mixed").build_options() == spelt_out.build_options()
        assert own(algorithm="k_quant_last").build_options() != spelt_out.build_options()

    @pytest.mark.parametrize(
        "change",
        [
            {"block_size": 64},
            {"is_symmetric": False},
            {"algorithm": "rtn"},
            {"accuracy_level": 1},
            {"mixed_precision": "last_matmul:int8"},
            {"nodes_to_exclude": ["/lm_head/MatMul"]},
            {"execution_provider": "cuda"},
            {"olive_passes": {"before": [{"type": "QuaRot"}]}},
        ],
    )
    def test_whatever_changes_the_bytes_changes_the_conversion(self, change: dict[str, Any]) -> None:
        assert own(**change).build_options() != own().build_options()

    @pytest.mark.parametrize(
        "change", [{"foundry": {"top_p": 0.5}}, {"gates": {"min_prompts_passed": None}}, {"context_length": 512}]
    )
    def test_what_comes_after_conversion_does_not_change_it(self, change: dict[str, Any]) -> None:
        assert own(**change).build_options() == own().build_options()
        assert content_digest(own(**change)) != content_digest(own())


class TestFiles:
    @pytest.mark.parametrize("name", sorted(BUILT_IN))
    def test_what_is_shown_is_taken_back(self, name: str, tmp_path: Path) -> None:
        file = tmp_path / "own.yaml"
        file.write_text(to_yaml(BUILT_IN[name]).replace(f"name: {name}", "name: ours"))

        taken = parse_recipe(read_mapping(file, "a recipe"), "own.yaml", needs_name=True)

        assert taken == replace(BUILT_IN[name], name="ours", version=0)

    def test_own_passes_and_every_key_survive_being_shown(self, tmp_path: Path) -> None:
        recipe = own(
            name="ours",
            precision="int8",
            olive_passes=PASSES | {"before": [{"type": "Rtn", "config": {"bits": 4}}]},
            context_length=1024,
            gates={"min_prompts_passed": None, "certificate_required": False},
        )
        file = tmp_path / "own.yaml"
        file.write_text(to_yaml(recipe))

        assert parse_recipe(read_mapping(file, "a recipe"), "own.yaml") == recipe

    @pytest.mark.parametrize(
        ("keys", "told"),
        [
            ({"precision": "int3"}, "precision is 'int3'; choose one of: int4, int8, fp16, fp32"),
            ({"precision": None}, "precision is None; choose one of"),
            ({"block_size": 48}, "block_size is 48; choose one of: 16, 32, 64, 128, 256"),
            ({"block_size": True}, "block_size is True; choose one of"),
            ({"blocksize": 32}, "blocksize is no key of a recipe; did you mean 'block_size'? there is: name, summary"),
            ({"symmetric": False}, "did you mean 'is_symmetric'?"),
            ({"is_symmetric": "no"}, "is_symmetric is 'no'"),
            ({"algorithm": "gptq"}, "algorithm is 'gptq'; choose one of: default, rtn, k_quant"),
            ({"accuracy_level": 5}, "accuracy_level is 5; it should be less than or equal to 4"),
            ({"execution_provider": "qnn"}, "choose one of: cpu, cuda, dml, webgpu"),
            (
                {"gates": {"min_prompt_passed": 0.5}},
                "gates: there is no gate 'min_prompt_passed'; did you mean min_prompts_passed",
            ),
            ({"gates": {"min_prompts_passed": 80}}, "gates: min_prompts_passed is a share"),
            ({"foundry": {"temperature": float("nan")}}, "foundry.temperature is no JSON value"),
            ({"foundry": {"max_length": 4096}, "context_length": 1024}, "more than the context_length of 1024"),
            ({"version": 3}, "version is given by the stack"),
            ({"name": "cpu-int4"}, "is that of a built-in recipe"),
            ({"name": "Ours@2"}, "name is 'Ours@2'"),
            ({"name": "schema"}, "name 'schema' is taken"),
            ({"mixed_precision": "all:int8"}, "mixed_precision has 'all:int8'; write some of: last_matmul:int8"),
            ({"nodes_to_exclude": ["/a,/b"]}, "nodes_to_exclude has '/a,/b'"),
            ({"olive_passes": {"builder_precision": "fp32"}}, "builder_precision needs passes"),
            ({"olive_passes": {"after": [{"type": "a.b.Evil"}]}}, "olive_passes.after.0.type is 'a.b.Evil'"),
            ({"olive_passes": {"after": [{"type": "A", "conf": {}}]}}, "did you mean 'config'? there is: type, config"),
            (
                {"olive_passes": {"after": [{"type": "OnnxDynamicQuantisation"}]}},
                "olive_passes.after.0.type is 'OnnxDynamicQuantisation', and Olive has no such pass; did you mean Onnx",
            ),
            (
                {"olive_passes": {"before": [{"type": "OnnxHqqQuantization"}]}},
                "does not work here; write it under after",
            ),
            ({"olive_passes": {"after": [{"type": "QNNConversion"}]}}, "which is not for language models on the CPU"),
            ({"olive_passes": {"after": [{"type": "OnnxQuantization"}]}}, "its default; write quant_mode: dynamic"),
            ({"olive_passes": {"before": [{"type": "SpinQuant"}]}}, "needs data that nothing here gives it"),
            (
                {"olive_passes": {"before": [{"type": "Gptq", "config": {"data_config": "wikitext"}}]}},
                "with data of its own (data_config); no data set is fetched",
            ),
            (
                {"precision": "int8", "olive_passes": {"before": [{"type": "Gptq"}]}},
                "precision is int8, but the passes make int4 of it; write int4",
            ),
            (
                {"olive_passes": {"after": [{"type": "OnnxDynamicQuantization"}], "builder_precision": "fp32"}},
                "precision is int4, but the passes make int8 of it; write int8, and builder_precision: fp32",
            ),
        ],
    )
    def test_a_wrong_key_is_told_with_what_it_is_and_what_may_be(self, keys: dict[str, Any], told: str) -> None:
        with pytest.raises(BadRecipe) as caught:
            own(**keys)
        assert told in str(caught.value)
        assert str(caught.value).startswith("a.yaml")

    @pytest.mark.parametrize(
        ("keys", "told"),
        [
            ({"precision": "fp16", "block_size": 32}, "block_size means nothing for fp16"),
            ({"precision": "fp32", "algorithm": "rtn"}, "algorithm means nothing for fp32"),
            ({"algorithm": "k_quant", "is_symmetric": True}, "k_quant ignores it: its weights are always asymmetric"),
            ({"algorithm": "k_quant_last", "mixed_precision": "last_matmul:int8"}, "is part of k_quant_last"),
            ({"precision": "int8", "mixed_precision": "last_matmul:int8"}, "means nothing for int8"),
            ({"precision": "int8", "algorithm": "k_quant_mixed"}, "as int8 does all; take k_quant"),
        ],
    )
    def test_combinations_that_cannot_be_are_refused_by_name(self, keys: dict[str, Any], told: str) -> None:
        with pytest.raises(BadRecipe, match=told):
            own(**keys)

    def test_k_quant_without_a_word_on_symmetry_is_asymmetric(self) -> None:
        assert own(algorithm="k_quant").is_symmetric is False

    def test_a_recipe_to_be_kept_needs_a_name(self) -> None:
        with pytest.raises(BadRecipe, match="name is missing; give the recipe one, such as 'name: int4-"):
            parse_recipe({"precision": "int4"}, "a.yaml", needs_name=True)

    @pytest.mark.parametrize(
        ("name", "content", "told"),
        [
            ("a.yaml", b"- int4", "holds no mapping"),
            ("a.yaml", b"a: [", "is no YAML"),
            ("a.json", b'{"precision": }', "line 1 is no JSON"),
            ("a.yaml", b"\xff\xfe", "is no YAML"),
            ("a.yaml", b" " * (2**20 + 1), "larger than 1 MiB"),
        ],
    )
    def test_a_file_that_is_no_recipe_is_told(self, tmp_path: Path, name: str, content: bytes, told: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadRecipe, match=told):
            read_mapping(tmp_path / name, "a recipe")

    def test_a_date_of_yaml_is_refused_where_it_stands(self, tmp_path: Path) -> None:
        file = tmp_path / "a.yaml"
        file.write_text("precision: int4\nolive_passes: {after: [{type: A, config: {since: 2026-01-01}}]}\n")
        with pytest.raises(BadRecipe, match=r"olive_passes\.after\.config\.since is no JSON value"):
            parse_recipe(read_mapping(file, "a recipe"), "a.yaml")

    @pytest.mark.parametrize(
        "config",
        [
            {"a": "x" * 70_000},
            {"a": [1] * 6000},
            {"a": reduce(lambda inner, _: [inner], range(2000), [])},
            {"a": 2**60},
        ],
        ids=["long", "many", "deep", "large"],
    )
    def test_more_than_a_jobs_row_should_hold_is_refused(self, config: dict[str, Any]) -> None:
        with pytest.raises(BadRecipe, match=r"more than a recipe can hold|is no JSON value"):
            own(olive_passes={"after": [{"type": "A", "config": config}]})

    def test_aliases_of_yaml_do_not_grow_without_end(self, tmp_path: Path) -> None:
        lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
        (tmp_path / "a.yaml").write_text("\n".join(lines))
        with pytest.raises(BadRecipe, match="more than a recipe can hold"):
            parse_recipe(read_mapping(tmp_path / "a.yaml", "a recipe"), "a.yaml")

    def test_the_schema_describes_every_key(self) -> None:
        described = schema()

        assert set(described["properties"]) == set(RecipeKeys.model_fields)
        assert described["required"] == ["precision"]
        assert described["additionalProperties"] is False
        assert described["properties"]["block_size"]["enum"] == [16, 32, 64, 128, 256]


class TestOptionsOfAutoOpt:
    @pytest.mark.parametrize(
        ("options", "name"),
        [
            (("int4", "cpu", "CPUExecutionProvider"), "cpu-int4"),
            (("INT8", "CPU", "cpuexecutionprovider"), "cpu-int8"),
            (("fp16",), "cpu-fp16"),
            (("fp32", None, "cpu"), "cpu-fp32"),
        ],
    )
    def test_they_mean_a_built_in_recipe(self, options: tuple[str, ...], name: str) -> None:
        assert recipe_for(*options).name == name
        assert recipe_for(*options).execution_provider is ExecutionProvider.CPU

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (("int3",), "--precision int3 cannot be built; choose one of: int4, int8, fp16, fp32"),
            (("int4", "npu"), "--device npu is not known; choose one of: cpu, gpu"),
            (("int4", "gpu"), "add --provider with one of: CUDAExecutionProvider, Dml"),
            (("int4", "gpu", "CUDAExecutionProvider"), "no built-in recipe is for cuda; take --device cpu"),
            (("int4", "gpu", "CPUExecutionProvider"), "does not run on --device gpu"),
            (
                ("int4", None, "QNNExecutionProvider"),
                "--provider QNNExecutionProvider is not known; choose one of: CPU",
            ),
        ],
    )
    def test_what_no_recipe_stands_for_is_refused_with_what_is_possible(
        self, options: tuple[str, ...], told: str
    ) -> None:
        with pytest.raises(BadRecipe) as caught:
            recipe_for(*options)
        assert told in str(caught.value)
