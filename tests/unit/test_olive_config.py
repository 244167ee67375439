"""An Olive workflow file becomes a recipe, with notes, or is refused by key."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from olivepress.errors import BadManifest, BadRecipe
from olivepress.manifest import inline_recipe, load_manifest, parse_manifest
from olivepress.recipes.files import parse_recipe
from olivepress.recipes.olive_config import input_path, recipe_of_workflow
from olivepress.recipes.recipe import BUILT_IN, ExecutionProvider, Precision, Recipe

# As people have it: written for Olive's older command line.
DOCUMENTED: dict[str, Any] = {
    "input_model": {"type": "HfModel", "model_path": "./finetuned", "task": "text-generation"},
    "systems": {
        "local_system": {
            "type": "LocalSystem",
            "accelerators": [{"execution_providers": ["CPUExecutionProvider"]}],
        }
    },
    "passes": {
        "builder": {
            "type": "ModelBuilder",
            "config": {"precision": "int4", "quantization_config": {"block_size": 128, "is_symmetric": False}},
        }
    },
    "host": "local_system",
    "target": "local_system",
    "cache_dir": "cache",
    "output_dir": "models/finetuned_onnx",
}


def workflow(*, builder: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    """The documented file with other options of its pass, or other keys."""
    values = copy.deepcopy(DOCUMENTED)
    if builder is not None:
        values["passes"]["builder"] = {"type": "ModelBuilder", **builder}
    return values | keys


def with_pass(name: str, **options: Any) -> dict[str, Any]:
    values = workflow(builder={"precision": "fp32"})
    values["passes"]["own"] = {"type": name, **options}
    return values


def refused(values: Any) -> str:
    with pytest.raises(BadRecipe) as caught:
        recipe_of_workflow(values, "w.json")
    return str(caught.value)


class TestTranslation:
    def test_the_documented_file_is_the_documented_recipe(self) -> None:
        recipe = recipe_of_workflow(DOCUMENTED)

        assert recipe.build_options() == BUILT_IN["cpu-int4-128"].build_options()
        assert recipe.version == 0

    def test_each_translation_and_what_is_ours_is_noted(self) -> None:
        notes = "\n".join(recipe_of_workflow(DOCUMENTED).notes)

        place = "passes.builder.config.quantization_config"
        assert f"{place}.block_size: read as int4_block_size" in notes
        assert f"{place}.is_symmetric: read as int4_is_symmetric" in notes
        for key in ("input_model.model_path", "output_dir", "systems, host and target"):
            assert key in notes

    @pytest.mark.parametrize(
        ("builder", "keys"),
        [
            ({"precision": "int4"}, {"precision": "int4", "block_size": 32, "is_symmetric": True}),
            (
                {"precision": "int8", "int4_block_size": 64, "int4_algo_config": "rtn"},
                {"precision": "int8", "block_size": 64, "algorithm": "rtn"},
            ),
            ({"config": {"precision": "fp16"}}, {"precision": "fp16"}),
            (
                {"precision": "int4", "int4_algo_config": "k_quant_mixed", "int4_accuracy_level": 4},
                {"precision": "int4", "algorithm": "k_quant_mixed"},
            ),
            (
                {
                    "precision": "int4",
                    "extra_options": {
                        "int4_block_size": "16",
                        "is_symmetric": "false",
                        "nodes_to_exclude": "/lm_head/MatMul,/model/layers.0/mlp/down_proj/MatMul",
                        "matmul_mixed_precision": "mixed_layers:int8",
                        "windowed_kv_cache": "false",
                    },
                },
                {
                    "precision": "int4",
                    "block_size": 16,
                    "is_symmetric": False,
                    "nodes_to_exclude": ["/lm_head/MatMul", "/model/layers.0/mlp/down_proj/MatMul"],
                    "mixed_precision": "mixed_layers:int8",
                },
            ),
            (
                {
                    "precision": "int4",
                    "int4_op_types_to_quantize": ["MatMul"],
                    "use_qdq": False,
                    "metadata_only": False,
                },
                {"precision": "int4"},
            ),
        ],
    )
    def test_options_of_the_builder_in_any_place_are_keys_of_a_recipe(
        self, builder: dict[str, Any], keys: dict[str, Any]
    ) -> None:
        found = recipe_of_workflow(workflow(builder=builder))

        assert found.build_options() == parse_recipe(keys, "k").build_options()

    def test_search_options_become_foundry_settings(self) -> None:
        builder = {"precision": "int4", "search": {"max_length": 512, "top_p": 0.5, "do_sample": False}}

        found = recipe_of_workflow(workflow(builder=builder))

        assert (found.foundry.max_length, found.foundry.top_p, found.foundry.temperature) == (512, 0.5, 0.0)

    def test_the_provider_of_the_system_is_that_of_the_recipe(self) -> None:
        system = {
            "type": "LocalSystem",
            "config": {"accelerators": [{"execution_providers": ["CUDAExecutionProvider"]}]},
        }

        found = recipe_of_workflow(workflow(systems={"local_system": system}))

        assert found.execution_provider is ExecutionProvider.CUDA

    def test_the_older_engine_mapping_is_read_like_the_keys_in_it(self) -> None:
        engine = {"cache_dir": "c", "output_dir": "o", "evaluate_input_model": False, "search_strategy": False}

        assert recipe_of_workflow(workflow(engine=engine)) == recipe_of_workflow(DOCUMENTED)

    def test_execution_providers_of_the_older_engine_mapping_count_as_those_of_a_system(self) -> None:
        cpu, cuda = ({"execution_providers": [f"{name}ExecutionProvider"]} for name in ("CPU", "CUDA"))

        assert recipe_of_workflow(workflow(engine=cpu)) == recipe_of_workflow(DOCUMENTED)
        assert (
            recipe_of_workflow(workflow(engine=cuda, systems={}, host=None, target=None)).execution_provider == "cuda"
        )
        assert "systems name 2 execution providers (cpu, cuda)" in refused(workflow(engine=cuda))

    def test_passes_without_names_are_told_how_to_be_written(self) -> None:
        assert "passes is a list; give each pass a name" in refused(workflow(passes=[{"type": "ModelBuilder"}]))

    def test_a_file_without_systems_is_for_the_cpu(self) -> None:
        values = {key: DOCUMENTED[key] for key in ("input_model", "passes")}

        assert recipe_of_workflow(values).build_options() == BUILT_IN["cpu-int4-128"].build_options()

    def test_other_passes_are_kept_in_their_order_around_the_builder(self) -> None:
        values = workflow()
        values["passes"] = {
            "first": {"type": "Rtn", "config": {"bits": 4}},
            "build": {"type": "modelbuilder", "precision": "fp32"},
            "then": [{"type": "OnnxDynamicQuantization", "per_channel": True, "disable_search": True}],
            "last": {"type": "GraphSurgeries", "surgeries": [{"surgeon": "DeduplicateNodes"}], "evaluator": None},
        }

        passes = recipe_of_workflow(values).olive_passes

        assert passes.before == ({"type": "Rtn", "config": {"bits": 4}},)
        assert [one["type"] for one in passes.after] == ["OnnxDynamicQuantization", "GraphSurgeries"]
        assert passes.after[0]["config"] == {"per_channel": True}

    @pytest.mark.parametrize(
        ("name", "precision"),
        [
            ("OnnxDynamicQuantization", Precision.INT8),
            ("OnnxFloatToFloat16", Precision.FP16),
            ("OnnxKQuantQuantization", Precision.INT4),
            ("GraphSurgeries", Precision.FP32),
        ],
    )
    def test_the_model_is_called_after_what_the_last_pass_makes_of_it(self, name: str, precision: Precision) -> None:
        found = recipe_of_workflow(with_pass(name))

        assert found.precision is precision
        assert found.build_options()["precision"] == "fp32"


class TestRefusals:
    @pytest.mark.parametrize(
        ("builder", "told"),
        [
            ({"config": {"precision": "int4", "foo": 1}}, "passes.builder.config.foo cannot be translated"),
            ({"precision": "int4", "foo": 1}, "passes.builder.foo cannot be translated"),
            ({}, "passes.builder.precision is missing; choose one of: int4"),
            ({"precision": "bf16"}, "passes.builder.precision is 'bf16'; choose one of: int4, int8, fp16, fp32"),
            (
                {"config": {"precision": "int4", "quantization_config": {"bits": 4}}},
                "passes.builder.config.quantization_config.bits cannot be translated; leave it out, or use: block_size",
            ),
            (
                {"config": {"precision": "int4", "quantization_config": {"block_size": 48}}},
                "passes.builder.config.quantization_config.block_size is 48; choose one of: 16",
            ),
            (
                {"config": {"precision": "fp16", "quantization_config": {"block_size": 32}}},
                "passes.builder.config.quantization_config.block_size means nothing for fp16",
            ),
            (
                {"precision": "int4", "int4_block_size": 32, "quantization_config": {"block_size": 128}},
                "quantization_config.block_size is 128, and passes.builder.int4_block_size says 32",
            ),
            ({"precision": "int4", "exclude_lm_head": True}, "passes.builder.exclude_lm_head would make a model"),
            ({"precision": "int4", "extra_options": {"hf_token": "x"}}, "passes.builder.extra_options.hf_token cannot"),
            ({"precision": "int4", "int4_op_types_to_quantize": ["Gather"]}, "only MatMul is quantized"),
            ({"precision": "int4", "search": {"top_k": 5}}, "passes.builder.search.top_k cannot be translated"),
            ({"precision": "int4", "evaluator": "e"}, "passes.builder.evaluator would measure in Olive"),
            (
                {"precision": "int4", "config": {"precision": "int8"}},
                "passes.builder.config.precision belongs, or also stands, beside config",
            ),
        ],
    )
    def test_an_option_of_the_builder_that_cannot_be_taken_is_named_by_its_path(
        self, builder: dict[str, Any], told: str
    ) -> None:
        assert told in refused(workflow(builder=builder))

    @pytest.mark.parametrize(
        ("keys", "told"),
        [
            ({"wings": 1}, "wings is no key of a workflow"),
            ({"passes": {}}, "passes is missing or empty"),
            ({"passes": {"a": {"type": "OnnxConversion"}}}, "passes has 0 passes of type ModelBuilder"),
            ({"passes": {"a": {"precision": "int4"}}}, "passes.a.type is missing"),
            ({"search_strategy": {"sampler": "tpe"}}, "search_strategy asks for a search"),
            ({"evaluators": {"e": {}}}, "evaluators would measure in Olive"),
            ({"data_configs": [{"name": "wiki"}]}, "data_configs would give passes data"),
            ({"systems": {"local_system": {"type": "Docker"}}}, "systems.local_system.type is 'Docker'"),
            ({"target": "gpu_box"}, "target names the system 'gpu_box', which is not under systems"),
            ({"input_model": {"type": "OnnxModel"}}, "input_model.type is not HfModel"),
            ({"input_model": {"type": "HfModel", "task": "summarization"}}, "input_model.task is 'summarization'"),
            (
                {"input_model": {"type": "HfModel", "config": {"load_kwargs": {"trust_remote_code": True}}}},
                "input_model.config.load_kwargs.trust_remote_code would run code",
            ),
            ({"input_model": {"type": "HfModel", "adapter_path": "a"}}, "input_model.adapter_path names an adapter"),
            (
                {"systems": {"local_system": {"type": "LocalSystem", "accelerators": [{"device": "gpu"}]}}},
                "systems.local_system.accelerators.0 is a gpu without an execution provider",
            ),
        ],
    )
    def test_a_key_of_the_file_that_cannot_be_taken_is_named(self, keys: dict[str, Any], told: str) -> None:
        assert told in refused(workflow(**keys))

    def test_two_execution_providers_are_one_too_many(self) -> None:
        accelerators = [{"execution_providers": ["CPUExecutionProvider", "CUDAExecutionProvider"]}]
        system = {"type": "LocalSystem", "accelerators": accelerators}

        assert "2 execution providers (cpu, cuda)" in refused(workflow(systems={"local_system": system}))

    def test_an_unknown_execution_provider_is_told_with_those_that_there_are(self) -> None:
        system = {"type": "LocalSystem", "accelerators": [{"execution_providers": ["QNNExecutionProvider"]}]}

        told = refused(workflow(systems={"local_system": system}))

        assert "systems.local_system.accelerators.0.execution_providers names 'QNNExecutionProvider'" in told

    @pytest.mark.parametrize("values", [[], "x", {}, {"passes": []}, {"passes": {"a": 1}}, {"passes": {"a": [1, 2]}}])
    def test_what_is_no_workflow_is_refused(self, values: Any) -> None:
        assert refused(values).startswith("w.json")


class TestManifests:
    def test_a_workflow_beside_a_manifest_is_one_recipe_more(self, tmp_path: Path) -> None:
        (tmp_path / "w.json").write_text(json.dumps(DOCUMENTED))
        (tmp_path / "batch.yaml").write_text("olive_config: w.json\nrecipes: [cpu-int8]\ncheckpoints: [a]\n")

        manifest = load_manifest(tmp_path / "batch.yaml")

        assert manifest.recipes == ["cpu-int8", {"olive_config": DOCUMENTED}]

    def test_alone_it_takes_the_place_of_the_default_recipe_and_is_the_same_when_sent_on(self) -> None:
        manifest = parse_manifest({"checkpoints": [{"path": "/a"}], "olive_config": DOCUMENTED})

        assert manifest.recipes == [{"olive_config": DOCUMENTED}]
        assert parse_manifest(manifest.model_dump(mode="json", exclude_none=True)) == manifest

    def test_a_recipe_can_stand_in_the_manifest_itself(self) -> None:
        manifest = parse_manifest(
            {"checkpoints": [{"path": "/a"}], "recipes": [{"precision": "int4", "block_size": 64}]}
        )

        (entry,) = manifest.recipes
        assert isinstance(entry, dict)
        found: Recipe = inline_recipe(entry)
        assert (found.block_size, found.version) == (64, 0)
        assert found.name.startswith("int4-")

    @pytest.mark.parametrize(
        ("recipe", "told"),
        [
            ({"precision": "int4", "block_size": 48}, "block_size is 48"),
            ({"olive_config": {"passes": {}}}, "passes is missing"),
            ({"olive_config": DOCUMENTED, "precision": "int4"}, "has keys beside olive_config"),
        ],
    )
    def test_a_wrong_one_is_told_with_its_place(self, recipe: dict[str, Any], told: str) -> None:
        with pytest.raises(BadManifest, match=r"recipes\.0") as caught:
            parse_manifest({"checkpoints": [{"path": "/a"}], "recipes": [recipe]})
        assert told in str(caught.value)

    def test_the_path_that_the_file_names_is_known(self) -> None:
        assert input_path(DOCUMENTED) == "./finetuned"
        assert input_path({"input_model": {"type": "HfModel", "config": {"model_path": "/x"}}}) == "/x"
        assert input_path({}) is None
