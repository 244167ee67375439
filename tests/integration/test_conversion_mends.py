"""Configurations that the model builder alone crashes on or gets wrong: mended, or refused."""

import copy
from pathlib import Path
from typing import Any

import pytest

from olivepress.errors import ConversionFailed
from tests.checkpoints import LLAMA3_ROPE, tiny_checkpoint
from tests.integration.conversion_cases import greedy_in_runtime, greedy_in_torch, in_torch, run_convert

pytestmark = pytest.mark.toolchain

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [2.0 + 0.1 * i for i in range(8)],
    "original_max_position_embeddings": 2048,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 1024}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
HUNYUAN = DYNAMIC | {"alpha": 1000.0, "factor": 1.0}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}
GEMMA3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        pytest.param("llama", {"rope_parameters": LLAMA3_ROPE}, id="llama-3 rope"),
        pytest.param("llama", {"rope_parameters": LINEAR}, id="llama with linear rope"),
        pytest.param("llama", {"rope_parameters": YARN}, id="llama with yarn"),
        pytest.param("qwen2", {"rope_parameters": YARN}, id="qwen2 with yarn"),
        pytest.param("mistral", {"rope_parameters": LLAMA3_ROPE}, id="mistral with llama-3 rope"),
        pytest.param("qwen3", {"rope_parameters": DYNAMIC}, id="qwen3 with dynamic rope"),
        pytest.param("smollm3", {"num_hidden_layers": 4, "rope_parameters": LINEAR}, id="smollm3 with linear rope"),
        pytest.param("hunyuan_v1_dense", {"rope_parameters": YARN}, id="hunyuan with yarn"),
        pytest.param("hunyuan_v1_dense", {"rope_parameters": HUNYUAN}, id="hunyuan's own dynamic rope"),
        pytest.param(
            "gemma3_text", {"rope_parameters": GEMMA3, "num_hidden_layers": 7}, id="gemma3, one rope stretched"
        ),
        pytest.param("phi", {"hidden_size": 64}, id="phi that turns four pairs"),
        pytest.param("phi3", {"hidden_size": 128, "rope_parameters": PARTIAL}, id="phi3 that turns twelve pairs"),
        pytest.param("llama", {"num_attention_heads": 8, "num_key_value_heads": 4}, id="heads of eight"),
        pytest.param("smollm3", {"num_hidden_layers": 4, "hidden_size": 96}, id="smollm3 with heads of 24"),
        pytest.param("llama", {"intermediate_size": 512}, id="a matrix as wide as the vocabulary"),
        pytest.param("llama", {"max_position_embeddings": 33}, id="a context shorter than the compared text"),
        pytest.param("granite", {"attention_multiplier": 1, "logits_scaling": 8}, id="multipliers without a point"),
        pytest.param("phi3", {"original_max_position_embeddings": 2048}, id="phi3 with two context lengths"),
        pytest.param(
            "phi3",
            {"original_max_position_embeddings": 2048, "rope_parameters": LONGROPE},
            id="phi3 with longrope",
        ),
        pytest.param("smollm3", {"num_hidden_layers": 4}, id="smollm3 with layers without rope"),
        pytest.param("qwen3", {}, id="qwen3"),
    ],
)
def test_the_built_model_is_the_model_of_torch(tmp_path: Path, architecture: str, config: dict[str, Any]) -> None:
    source = tiny_checkpoint(tmp_path / "source", architecture, **copy.deepcopy(config))

    parity = run_convert(source, "cpu-fp32", tmp_path)["parity"]

    assert parity["top1"] == 1.0
    assert parity["kl"] < 1e-8


@pytest.mark.parametrize("architecture", ["mistral", "phi3", "gemma3_text"])
def test_generation_goes_on_when_the_window_is_full(tmp_path: Path, architecture: str) -> None:
    source = tiny_checkpoint(tmp_path / "source", architecture, sliding_window=16)

    run_convert(source, "cpu-fp32", tmp_path)

    assert greedy_in_runtime(tmp_path / "output", 24) == greedy_in_torch(in_torch(source), 24)


@pytest.mark.parametrize("recipe", ["cpu-int4", "cpu-int8"])
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            {"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 160}, id="odd number of blocks"
        ),
        pytest.param({"hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 5}, id="a block is not full"),
        pytest.param({"vocab_size": 515}, id="odd vocabulary"),
    ],
)
def test_rows_that_do_not_fill_their_blocks_convert(tmp_path: Path, config: dict[str, int], recipe: str) -> None:
    source = tiny_checkpoint(tmp_path / "source", "qwen2", **config)

    parity = run_convert(source, recipe, tmp_path)["parity"]

    assert parity["correlation"] > {"cpu-int4": 0.9, "cpu-int8": 0.995}[recipe]


@pytest.mark.parametrize("recipe", ["cpu-int4", "cpu-int8", "cpu-fp32"])
def test_a_model_that_the_builder_misunderstands_is_refused(tmp_path: Path, recipe: str) -> None:
    # given norms of queries and keys, which the builder leaves out of Phi
    source = tiny_checkpoint(tmp_path / "source", "phi", qk_layernorm=True)

    with pytest.raises(ConversionFailed, match=r"not say what its source says: .*q_layernorm\.weight' is not in it"):
        run_convert(source, recipe, tmp_path)
