"""A built model with any weight or angle that is not its source's does not pass for it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnxruntime_genai.models import builder
from safetensors.torch import load_file, save_file

from olivepress.errors import ConversionFailed
from olivepress.recipes.recipe import recipe_named
from tests.checkpoints import LLAMA3_ROPE, tiny_checkpoint
from tests.integration.conversion_cases import run_convert
from tests.integration.ingest_cases import edit_json
from workers.toolchains import parity
from workers.toolchains.conversion import Conversion

pytestmark = pytest.mark.toolchain

RECIPES = ("cpu-int4", "cpu-int8", "cpu-fp16", "cpu-fp32")
Tensors = dict[str, torch.Tensor]
Q_BIAS = "model.layers.1.self_attn.q_proj.bias"
NORM = "model.layers.0.post_attention_layernorm.weight"
UP = "model.layers.1.mlp.up_proj.weight"
FIRST_UP = "model.layers.0.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def _random(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(7))
        tensors[name] = (noise * tensors[name].float().std()).to(tensors[name].dtype)

    return change


def _one_row(name: str, row: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name][row] = tensors[name][row].flip(-1)

    return change


def _swapped(first: str, second: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[first], tensors[second] = tensors[second], tensors[first]

    return change


def _zeroed(layer: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in tensors:
            if layer in name:
                tensors[name].zero_()

    return change


DAMAGES = {
    "a random norm": (_random(NORM), NORM),
    "a random final norm": (_random("model.norm.weight"), "model.norm.weight"),
    "a random bias": (_random(Q_BIAS), Q_BIAS),
    "a random matrix": (_random(UP), UP.removesuffix(".weight")),
    "one row of a matrix": (_one_row(UP, 100), "differs in 1 of its rows, the first is 100"),
    "one row of the embeddings": (_one_row(EMBEDDING, 300), "differs in 1 of its rows, the first is 300"),
    "layers that changed places": (_swapped(UP, FIRST_UP), FIRST_UP.removesuffix(".weight")),
    "a layer of zeros": (_zeroed("layers.1."), "model.layers.1."),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    tiny_checkpoint(root / "tied", "qwen2")
    tiny_checkpoint(root / "untied", "qwen2", tied=False)
    return root


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_model_with_a_wrong_weight_does_not_pass_for_its_source(
    sources: Path, tmp_path: Path, damage: str, recipe: str
) -> None:
    source = sources / ("untied" if "embeddings" in damage else "tied")
    change, told = DAMAGES[damage]
    other = shutil.copytree(source, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    change(tensors)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    run_convert(other, recipe, tmp_path)

    with pytest.raises(ConversionFailed, match="does not say what its source says") as refusal:
        parity.check(_conversion(source, tmp_path, recipe))

    assert told in str(refusal.value)


def test_a_rope_that_was_not_stretched_does_not_pass(tmp_path: Path) -> None:
    # given slow angles that differ only far beyond the text that is compared
    source = tiny_checkpoint(tmp_path / "source", "llama", rope_parameters=LLAMA3_ROPE, max_position_embeddings=8192)
    plain = shutil.copytree(source, tmp_path / "plain")
    edit_json(plain / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    run_convert(plain, "cpu-int4", tmp_path)

    with pytest.raises(ConversionFailed, match="'cos_cache' turns positions by other angles than the source does"):
        parity.check(_conversion(source, tmp_path, "cpu-int4"))


@pytest.mark.parametrize("recipe", ["cpu-int4", "cpu-fp32"])
def test_a_graph_that_computes_something_else_with_the_right_weights_does_not_pass(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    # given a builder that forgets the scaling of attention
    make_attention_init = builder.Model.make_attention_init

    def forgetful(model: builder.Model, *args: object) -> None:
        make_attention_init(model, *args)
        model.attention_attrs["scale"] = 2.0

    monkeypatch.setattr(builder.Model, "make_attention_init", forgetful)

    with pytest.raises(ConversionFailed, match="with the same weights, their logits correlate by 0"):
        run_convert(sources / "tied", recipe, tmp_path)


def test_top1_and_kl_compare_with_the_source_itself(sources: Path, tmp_path: Path) -> None:
    found = run_convert(sources / "tied", "cpu-int4", tmp_path)["parity"]

    assert 0.01 < found["kl"] < 1.0
    assert 0.9 < found["correlation"] < 0.999
    assert np.isfinite(found["top1"])


def _conversion(source: Path, workspace: Path, recipe: str) -> Conversion:
    options = recipe_named(recipe).build_options()
    return Conversion(source, source, options, workspace / "output", workspace / "scratch")
