"""The convert step, with Olive and the model builder as they are."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints import tiny_checkpoint
from tests.integration.conversion_cases import (
    MODEL_FILES,
    greedy_in_runtime,
    greedy_in_torch,
    in_torch,
    logits_in_runtime,
    logits_in_torch,
    run_convert,
)
from workers.toolchains import olive

pytestmark = pytest.mark.toolchain

RECIPES = ("cpu-int4", "cpu-int8", "cpu-fp32")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    tiny_checkpoint(root / "qwen2", "qwen2")
    tiny_checkpoint(root / "llama", "llama", tied=False, dtype=torch.float16, shards=2)
    tiny_checkpoint(root / "phi3", "phi3", tied=False, dtype=torch.float32)
    return root


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("style", ["qwen2", "llama", "phi3"])
def test_every_style_converts_with_every_recipe(checkpoints: Path, tmp_path: Path, style: str, recipe: str) -> None:
    result = run_convert(checkpoints / style, recipe, tmp_path)

    assert {path.name for path in (tmp_path / "output").iterdir()} == MODEL_FILES
    assert result["notes"] == []
    floor = {"cpu-int4": 0.9, "cpu-int8": 0.995, "cpu-fp32": 0.999999}[recipe]
    assert floor < result["parity"]["correlation"] <= 1.0 + 1e-9
    if recipe == "cpu-fp32":
        output, source = tmp_path / "output", in_torch(checkpoints / style)
        assert greedy_in_runtime(output, 12) == greedy_in_torch(source, 12)
        np.testing.assert_allclose(logits_in_runtime(output), logits_in_torch(source), atol=1e-3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_tied_embeddings_are_stored_once(checkpoints: Path, tmp_path: Path, recipe: str) -> None:
    untied = tiny_checkpoint(tmp_path / "untied", "qwen2", tied=False)

    run_convert(checkpoints / "qwen2", recipe, tmp_path / "tied")
    run_convert(untied, recipe, tmp_path / "two")

    saved = _data_bytes(tmp_path / "two") - _data_bytes(tmp_path / "tied")
    one_fp32_matrix = 512 * 64 * 4
    assert saved == one_fp32_matrix


def test_two_runs_in_different_places_give_the_same_bytes(checkpoints: Path, tmp_path: Path) -> None:
    places = [tmp_path / "first", tmp_path / "quite" / "another" / "place"]

    for place in places:
        run_convert(checkpoints / "qwen2", "cpu-int4", place)

    first, second = (_digests(place / "output") for place in places)
    assert first == second
    for path in (places[0] / "output").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_progress_only_grows_and_names_its_phases(checkpoints: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []

    run_convert(
        checkpoints / "qwen2",
        "cpu-int8",
        tmp_path,
        report_progress=lambda phase, share: told.append((phase, share)),
    )

    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert list(dict.fromkeys(phase for phase, _ in told)) == ["build", "check"]
    assert len(set(shares)) > 10


def test_no_copy_of_the_model_is_left_in_the_workspace(checkpoints: Path, tmp_path: Path) -> None:
    run_convert(checkpoints / "qwen2", "cpu-fp32", tmp_path)

    assert not list((tmp_path / "scratch").rglob("*.data"))


def test_the_supported_architectures_are_those_of_the_builder_that_answer_rightly() -> None:
    supported = olive.supported_architectures()

    assert {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM"} <= set(supported)
    assert not {"OlmoForCausalLM", "GPT2LMHeadModel", "WhisperForConditionalGeneration"} & set(supported)
    assert supported == sorted(supported)


def _data_bytes(workspace: Path) -> int:
    return (workspace / "output" / "model.onnx.data").stat().st_size


def _digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
