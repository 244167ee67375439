"""Conversions by every kind of recipe: built in, of one's own, and of an Olive workflow with passes of its own."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from olive.package_config import OlivePackageConfig

from olivepress.errors import BadRecipe, ConversionFailed, NoRoom
from olivepress.recipes import olive_catalog
from olivepress.recipes.files import parse_recipe
from olivepress.recipes.olive_config import recipe_of_workflow
from olivepress.recipes.recipe import BUILT_IN, Recipe
from tests.checkpoints import tiny_checkpoint
from tests.integration.conversion_cases import (
    MODEL_FILES,
    greedy_in_runtime,
    greedy_in_torch,
    in_torch,
    logits_in_runtime,
    run_convert,
    run_recipe,
)
from tests.unit.test_olive_config import DOCUMENTED, with_pass
from workers.steps import convert
from workers.steps.context import StepContext
from workers.toolchains import olive_passes

pytestmark = pytest.mark.toolchain


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "qwen2", "qwen2")


def own(**keys: Any) -> Recipe:
    return parse_recipe({"precision": "int4", **keys}, "a.yaml")


def after(name: str, precision: str = "fp32", **options: Any) -> Recipe:
    """The recipe of a workflow with this pass after the builder."""
    values = with_pass(name, config=options)
    values["passes"]["builder"]["precision"] = precision
    return recipe_of_workflow(values)


def nodes(workspace: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(workspace / "output" / "model.onnx", load_external_data=False).graph.node)


def data_bytes(workspace: Path) -> int:
    return (workspace / "output" / "model.onnx.data").stat().st_size


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_recipe_gives_a_model_that_generates(tmp_path: Path, name: str, tied: bool) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "source", "llama", tied=tied)

    run_convert(checkpoint, name, tmp_path)

    assert {path.name for path in (tmp_path / "output").iterdir()} == MODEL_FILES
    assert len(greedy_in_runtime(tmp_path / "output", 8)) == 8


@pytest.mark.parametrize(
    "keys",
    [
        {"block_size": 16},
        {"block_size": 256, "is_symmetric": False},
        {"algorithm": "rtn", "is_symmetric": False, "mixed_precision": "last_matmul:int8,mixed_layers:int8"},
        {"algorithm": "k_quant"},
        {"algorithm": "k_quant_mixed", "block_size": 64},
        {"algorithm": "k_quant_last"},
        {"precision": "int8", "algorithm": "k_quant"},
        {"precision": "int8", "algorithm": "rtn", "block_size": 128},
        {"accuracy_level": 0},
        {"accuracy_level": 1, "precision": "int8"},
    ],
    ids=lambda keys: "-".join(str(value) for value in keys.values()),
)
def test_every_way_to_quantize_gives_a_model_that_agrees_with_its_source(
    source: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    recipe = own(**keys)

    result = run_convert(source, recipe, tmp_path)

    assert 0.8 < result["parity"]["correlation"] <= 1.0 + 1e-9
    quantized = [node for node in nodes(tmp_path) if node.op_type == "MatMulNBits"]
    attributes = [{one.name: one.i for one in node.attribute} for node in quantized]
    assert {one["block_size"] for one in attributes} == {recipe.block_size}
    has_zero_points = any(len(node.input) > 3 and node.input[3] for node in quantized)
    assert has_zero_points is not recipe.is_symmetric
    kept = recipe.algorithm.value.startswith("k_quant_") or recipe.mixed_precision
    assert {one["bits"] for one in attributes} == ({8} if recipe.precision == "int8" else {4, 8} if kept else {4})


def test_an_excluded_matrix_stays_as_it_was(source: Path, tmp_path: Path) -> None:
    name = "/model/layers.1/mlp/down_proj/MatMul"

    run_convert(source, own(nodes_to_exclude=[name]), tmp_path)

    assert [node.op_type for node in nodes(tmp_path) if node.name.startswith(name)] == ["MatMul"]


def test_an_excluded_matrix_that_there_is_not_is_told_with_names_that_there_are(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed, match=r"names /model/layers\.9/.*names of its graph are: /model/layers\.\d"):
        run_convert(source, own(nodes_to_exclude=["/model/layers.9/mlp/down_proj/MatMul"]), tmp_path)


@pytest.mark.parametrize("provider", ["cuda", "dml", "webgpu"])
def test_a_provider_that_no_worker_builds_for_is_refused_before_anything_is_built(
    source: Path, tmp_path: Path, provider: str
) -> None:
    with pytest.raises(NoRoom, match=f"no worker builds models for {provider}"):
        run_convert(source, own(execution_provider=provider), tmp_path)
    assert not list((tmp_path / "scratch").iterdir())


class TestWorkflows:
    def test_the_documented_file_gives_the_same_bytes_as_the_recipe_of_its_options(
        self, source: Path, tmp_path: Path
    ) -> None:
        for place, recipe in (("file", recipe_of_workflow(DOCUMENTED)), ("name", BUILT_IN["cpu-int4-128"])):
            run_convert(source, recipe, tmp_path / place)

        one, other = (tmp_path / place / "output" / "model.onnx.data" for place in ("file", "name"))
        assert one.read_bytes() == other.read_bytes()

    def test_its_translations_are_in_the_log(
        self, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        # given one that is refused after its notes are told: nothing needs to be built
        recipe = own(execution_provider="cuda")
        spec = {"path": str(source), "base": None, "build": recipe.build_options()}
        context = StepContext(tmp_path, tmp_path, tmp_path / "lock", lambda phase, share: None)

        with caplog.at_level(logging.INFO), pytest.raises(NoRoom):
            convert.run(spec | {"recipe_notes": list(recipe_of_workflow(DOCUMENTED).notes)}, context)

        assert "quantization_config.block_size: read as int4_block_size" in caplog.text

    def test_dynamic_quantization_after_the_builder(self, source: Path, tmp_path: Path) -> None:
        recipe = after("OnnxDynamicQuantization", per_channel=False)

        result = run_recipe(source, recipe, tmp_path / "int8")
        run_convert(source, "cpu-fp32", tmp_path / "fp32")

        assert recipe.precision == "int8"
        assert {path.name for path in (tmp_path / "int8" / "output").iterdir()} == MODEL_FILES
        assert result["parity"]["correlation"] > 0.99
        assert data_bytes(tmp_path / "int8") < 0.75 * data_bytes(tmp_path / "fp32")
        assert {"MatMulInteger"} <= {node.op_type for node in nodes(tmp_path / "int8")}

    @pytest.mark.parametrize("keep_io_types", [True, False])
    def test_half_precision_after_the_builder(self, source: Path, tmp_path: Path, keep_io_types: bool) -> None:
        result = run_recipe(source, after("OnnxFloatToFloat16", keep_io_types=keep_io_types), tmp_path)

        assert result["parity"]["correlation"] > 0.99999
        assert greedy_in_runtime(tmp_path / "output", 8) == greedy_in_torch(in_torch(source), 8)

    def test_k_quant_on_the_onnx_model(self, source: Path, tmp_path: Path) -> None:
        run_recipe(source, after("OnnxKQuantQuantization"), tmp_path)

        assert "MatMulNBits" in {node.op_type for node in nodes(tmp_path)}

    def test_a_surgery_on_a_quantized_graph_leaves_what_it_says(self, source: Path, tmp_path: Path) -> None:
        surgery = after("GraphSurgeries", "int4", surgeries=[{"surgeon": "DeduplicateNodes"}])

        run_recipe(source, surgery, tmp_path / "with")
        run_convert(source, "cpu-int4-small", tmp_path / "without")

        logits = [logits_in_runtime(tmp_path / place / "output") for place in ("with", "without")]
        np.testing.assert_allclose(*logits, atol=1e-3)

    def test_a_pass_on_the_checkpoint_before_the_builder(self, source: Path, tmp_path: Path) -> None:
        rounding = {"type": "Rtn", "config": {"bits": 4, "group_size": 32}}
        recipe = own(olive_passes={"before": [rounding]})

        result = run_recipe(source, recipe, tmp_path)

        assert result["parity"]["correlation"] > 0.85
        assert "MatMulNBits" in {node.op_type for node in nodes(tmp_path)}

    def test_passes_run_one_after_the_other(self, source: Path, tmp_path: Path) -> None:
        values = with_pass("GraphSurgeries", surgeries=[{"surgeon": "DeduplicateNodes"}])
        values["passes"]["second"] = {"type": "OnnxDynamicQuantization"}

        run_recipe(source, recipe_of_workflow(values), tmp_path)

        assert {path.name for path in (tmp_path / "output").iterdir()} == MODEL_FILES
        assert "MatMulInteger" in {node.op_type for node in nodes(tmp_path)}

    def test_two_runs_of_passes_give_the_same_bytes(self, source: Path, tmp_path: Path) -> None:
        for place in ("one", "two"):
            run_recipe(source, after("OnnxDynamicQuantization"), tmp_path / place)

        for name in MODEL_FILES:
            one, two = (tmp_path / place / "output" / name for place in ("one", "two"))
            assert one.read_bytes() == two.read_bytes(), name
            assert str(tmp_path).encode() not in one.read_bytes()

    def test_a_pass_that_makes_another_function_of_the_model_is_not_let_through(
        self, source: Path, tmp_path: Path
    ) -> None:
        # given a surgery that puts zeros where the second norm's weights come in
        norm = "/model/layers.1/post_attention_layernorm/SkipLayerNorm"
        surgery = {"surgeon": "ZeroOutInput", "node_name": norm, "input_idx": 2}

        with pytest.raises(ConversionFailed, match="does not say what its source says"):
            run_recipe(source, after("GraphSurgeries", surgeries=[surgery]), tmp_path)

    def test_a_pass_that_computes_something_else_is_not_let_through(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(ConversionFailed, match=r"against the model before the passes, its logits correlate by"):
            run_recipe(source, after("OnnxHqqQuantization"), tmp_path)

    def test_a_pass_after_which_the_model_does_not_run_is_told(self, source: Path, tmp_path: Path) -> None:
        surgery = {"surgeon": "RenameInputs", "old_names": ["input_ids"], "new_names": ["words"]}

        with pytest.raises(ConversionFailed, match=r"for the first time failed: .*leave out the recipe's own pass"):
            run_recipe(source, after("GraphSurgeries", surgeries=[surgery]), tmp_path)

    def test_a_pass_that_fails_is_told_with_what_olive_swallowed(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(ConversionFailed, match=r"No split assignments found.*leave out the recipe.s own pass"):
            run_recipe(source, after("SplitModel"), tmp_path)


class TestRefusals:
    @pytest.mark.parametrize(
        ("on", "one", "told"),
        [
            ("onnx", {"type": "OnnxDynamicQuantisation"}, "has no pass 'OnnxDynamicQuantisation'; did you mean Onnx"),
            ("onnx", {"type": "Zzz"}, "the installed Olive has no pass 'Zzz'"),
            ("onnx", {"type": "OnnxBnb4Quantization"}, "OnnxBnb4Quantization needs the packages bitsandbytes, triton"),
            ("checkpoint", {"type": "AutoAWQQuantizer"}, "the pass AutoAWQQuantizer needs the package autoawq"),
            ("checkpoint", {"type": "Gptq"}, "the pass Gptq learns from text of the fine-tune's domain; submit some"),
            ("checkpoint", {"type": "SpinQuant"}, "SpinQuant needs a data set to calibrate with"),
            ("onnx", {"type": "OnnxStaticQuantization"}, "OnnxStaticQuantization needs a data set"),
            ("onnx", {"type": "OnnxQuantization"}, "needs data for the mode 'static', its default; write quant_mode"),
            (
                "checkpoint",
                {"type": "Gptq", "config": {"data_config": "wikitext"}},
                "is to read data (data_config); data sets of a hub are never fetched",
            ),
            (
                "onnx",
                {"type": "OnnxDynamicQuantization", "config": {"per_chanel": True}},
                "has no option 'per_chanel'; did you mean 'per_channel'?",
            ),
            (
                "onnx",
                {"type": "OnnxDynamicQuantization", "config": {"per_channel": "perhaps"}},
                "does not take per_channel: 'perhaps'",
            ),
            (
                "onnx",
                {"type": "OnnxDynamicQuantization", "config": {"external_data_name": "x"}},
                "option 'external_data_name' of the pass OnnxDynamicQuantization says where its model goes",
            ),
            ("onnx", {"type": "GraphSurgeries"}, "the pass GraphSurgeries needs the option 'surgeries'"),
            ("checkpoint", {"type": "SelectiveMixedPrecision"}, "needs an option that is not given; it has: algorithm"),
            ("checkpoint", {"type": "Rtn", "config": {"embeds": True}}, "'embeds' of the pass Rtn would quantize"),
            ("checkpoint", {"type": "OnnxDynamicQuantization"}, "does not work on the checkpoint; write it after"),
            ("onnx", {"type": "Rtn"}, "does not work on an ONNX model; write it before"),
            ("onnx", {"type": "OrtMixedPrecision"}, "is for CUDAExecutionProvider, DmlExecutionProvider"),
            ("onnx", {"type": "OrtSessionParamsTuning"}, "measures on the machine that it runs on"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_pass_that_cannot_run_is_refused_by_name(
        self, on: olive_passes.WorksOn, one: dict[str, Any], told: str
    ) -> None:
        with pytest.raises(BadRecipe) as caught:
            olive_passes.refuse_unrunnable([{"config": {}} | one], on, has_calibration=False)
        assert told in str(caught.value)

    def test_it_is_refused_before_anything_runs(self, source: Path, tmp_path: Path) -> None:
        recipe = own(olive_passes={"before": [{"type": "AutoAWQQuantizer"}]})

        with pytest.raises(BadRecipe, match="needs the package autoawq"):
            run_recipe(source, recipe, tmp_path)
        assert not list((tmp_path / "first" / "scratch").iterdir())

    def test_code_of_the_recipes_own_is_never_run(self, tmp_path: Path) -> None:
        script = tmp_path / "evil.py"
        script.write_text("raise SystemExit('it ran')\n")
        found = []
        for name in ("OnnxConversion", "OnnxScriptFusion", "OrtTransformersOptimization", "OptimumConversion"):
            for key in ("user_script", "script_dir"):
                one = {"type": name, "config": {key: str(script)}}
                with pytest.raises(BadRecipe) as caught:
                    olive_passes.refuse_unrunnable([one], "onnx", has_calibration=True)
                found.append(str(caught.value))
        assert "it ran" not in json.dumps(found)

    def test_what_is_known_of_passes_without_olive_is_what_the_installed_one_says(self) -> None:
        names: dict[str, set[str]] = {"checkpoint": set(), "onnx": set(), "elsewhere": set()}
        for kind, found in OlivePackageConfig.load_default_config().passes.items():
            is_for_cpu = olive_passes.CPU in found.supported_providers
            homes = [on for on, home in olive_passes.HOMES.items() if found.module_path.startswith(home)]
            if kind != "modelbuilder":
                names[homes[0] if homes and is_for_cpu else "elsewhere"].add(found.module_path.rpartition(".")[2])

        known = {"checkpoint": olive_catalog.ON_CHECKPOINTS, "onnx": olive_catalog.ON_ONNX}
        assert names == {on: set(each) for on, each in (known | {"elsewhere": olive_catalog.ELSEWHERE}).items()}
