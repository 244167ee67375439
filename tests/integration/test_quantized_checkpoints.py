"""Checkpoints that were quantized before (GPTQ, AWQ) become models of the weights that they stand for."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from olivepress.checkpoints.reading import inspect, read_checkpoint
from olivepress.errors import BadCheckpoint
from tests.checkpoints import tiny_adapter, tiny_checkpoint
from tests.integration.conversion_cases import in_torch, logits_in_runtime, logits_in_torch, run_convert
from tests.integration.ingest_cases import edit_json, run
from tests.quantized_checkpoints import quantized_checkpoint

pytestmark = pytest.mark.toolchain

KINDS: dict[str, dict[str, Any]] = {
    "gptq": {"method": "gptq"},
    "gptq in order of activation": {"method": "gptq", "act_order": True},
    "gptq v2": {"method": "gptq", "form": "gptq_v2"},
    "awq": {"method": "awq"},
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A quantized checkpoint and what it stands for."""
    root = tmp_path_factory.mktemp("quantized")
    source = tiny_checkpoint(root / "source", "llama", tied=False)
    return quantized_checkpoint(source, root, **KINDS[request.param])


def test_it_is_ingested_as_what_it_stands_for(pair: tuple[Path, Path]) -> None:
    quantized, plain = pair

    found, wanted = run(quantized), run(plain)

    for fact in ("architecture", "parameters", "tied_embeddings", "vocabulary_size"):
        assert found[fact] == wanted[fact], fact
    assert found["size_bytes"] < wanted["size_bytes"] / 2
    assert inspect(quantized)["parameters"] == inspect(plain)["parameters"]
    shapes = [{tensor.name: tensor.shape for tensor in read_checkpoint(path).tensors} for path in pair]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("recipe", ["cpu-fp32", "cpu-int4"])
def test_the_built_model_says_what_its_weights_stand_for(pair: tuple[Path, Path], tmp_path: Path, recipe: str) -> None:
    quantized, plain = pair

    parity = run_convert(quantized, recipe, tmp_path)["parity"]

    if recipe == "cpu-fp32":
        wanted = logits_in_torch(in_torch(plain))
        np.testing.assert_allclose(logits_in_runtime(tmp_path / "output"), wanted, atol=1e-3)
    assert parity["correlation"] > {"cpu-fp32": 1 - 1e-9, "cpu-int4": 0.95}[recipe]


def test_an_adapter_over_a_quantized_base_is_merged_into_what_it_stands_for(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    quantized, plain = pair
    adapter = tiny_adapter(tmp_path / "adapter", plain)

    run(adapter, quantized)
    for name, base in (("quantized", quantized), ("plain", plain)):
        run_convert(adapter, "cpu-fp32", tmp_path / name, base=base)

    built, wanted = (logits_in_runtime(tmp_path / name / "output") for name in ("quantized", "plain"))
    np.testing.assert_allclose(built, wanted, atol=1e-4)


def test_infinite_scales_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    quantized = _copy(pair[0], tmp_path)
    tensors = load_file(quantized / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.scales"][0, 3] = torch.inf
    save_file(tensors, quantized / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(BadCheckpoint, match=r"'model.layers.0.mlp.up_proj.scales' .* holds 1 infinite"):
        run(quantized)


def test_a_config_of_another_size_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    quantized = _copy(pair[0], tmp_path)
    edit_json(quantized / "config.json", intermediate_size=256)

    with pytest.raises(BadCheckpoint, match=r"'model.layers.*' .* is .*, by config.json it would be"):
        run(quantized)


def _copy(source: Path, root: Path) -> Path:
    return Path(shutil.copytree(source, root / "copy"))
