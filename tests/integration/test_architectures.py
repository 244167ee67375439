"""Every architecture in every precision: the built model is the model of torch, to the last bit that its weights have.

Weights are random, so distributions are flat and each rounding shows: of trained models more tokens agree.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olivepress.errors import ConversionFailed
from tests.checkpoints import LLAMA3_ROPE, MODEL_TYPES, UNSOUND, tiny_checkpoint
from tests.integration.conversion_cases import (
    TOKENS,
    greedy_in_runtime,
    greedy_in_torch,
    in_torch,
    logits_in_runtime,
    logits_in_torch,
    run_convert,
)
from workers.toolchains import olive

pytestmark = pytest.mark.toolchain

WINDOW = 16
LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
# Beside each architecture as it is: what its family's checkpoints come with.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{model_type: (model_type, {}) for model_type in MODEL_TYPES},
    "llama untied": ("llama", {"tied": False}),
    "llama 3 rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "mistral with a window": ("mistral", {"sliding_window": WINDOW, "tied": False}),
    "phi3 with a window": ("phi3", {"sliding_window": WINDOW, "tied": False}),
    "gemma2 past its window": ("gemma2", {"sliding_window": WINDOW}),
    "gemma3 of both kinds of layers": ("gemma3_text", {"sliding_window": WINDOW} | LAYERS),
    # The square root of its width is no round number.
    "gemma with an odd scale": ("gemma", {"hidden_size": 96}),
}
LONGER_THAN_THE_WINDOW = 24


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    for name, (model_type, config) in VARIANTS.items():
        tiny_checkpoint(root / name, model_type, **config)
    return root


@pytest.mark.parametrize("name", VARIANTS)
def test_fp32_says_what_torch_says(checkpoints: Path, tmp_path: Path, name: str) -> None:
    run_convert(checkpoints / name, "cpu-fp32", tmp_path)

    model, output = in_torch(checkpoints / name), tmp_path / "output"
    built, wanted = logits_in_runtime(output), logits_in_torch(model)
    assert len(TOKENS) > WINDOW
    assert (built.argmax(-1) == wanted.argmax(-1)).all()
    np.testing.assert_allclose(_distribution(built), _distribution(wanted), atol=1e-5)
    np.testing.assert_allclose(built, wanted, atol=1e-3)
    assert greedy_in_runtime(output, LONGER_THAN_THE_WINDOW) == greedy_in_torch(model, LONGER_THAN_THE_WINDOW)


@pytest.mark.parametrize("name", VARIANTS)
def test_fp16_is_half_as_large_and_generates_the_same(checkpoints: Path, tmp_path: Path, name: str) -> None:
    parity = run_convert(checkpoints / name, "cpu-fp16", tmp_path)["parity"]

    model, output = in_torch(checkpoints / name), tmp_path / "output"
    size_bytes = (output / "model.onnx.data").stat().st_size
    parameters = sum(parameter.numel() for parameter in model.parameters())
    kinds_of_layers = 2 if name == "gemma3 of both kinds of layers" else 1
    tables = kinds_of_layers * 2 * 4096 * 8
    assert size_bytes < 2.1 * (parameters + tables)
    assert parity["top1"] == 1.0
    assert 1 - parity["correlation"] < 1e-7
    assert greedy_in_runtime(output, LONGER_THAN_THE_WINDOW) == greedy_in_torch(model, LONGER_THAN_THE_WINDOW)


@pytest.mark.parametrize(("recipe", "moved"), [("cpu-int8", 0.005), ("cpu-int4", 0.1)])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_quantized_model_stays_near_its_source(
    checkpoints: Path, tmp_path: Path, name: str, recipe: str, moved: float
) -> None:
    parity = run_convert(checkpoints / name, recipe, tmp_path)["parity"]

    assert 1 - parity["correlation"] < moved
    assert len(greedy_in_runtime(tmp_path / "output", LONGER_THAN_THE_WINDOW)) == LONGER_THAN_THE_WINDOW


@pytest.mark.parametrize("recipe", ["cpu-int4", "cpu-int8", "cpu-fp16", "cpu-fp32"])
@pytest.mark.parametrize("model_type", UNSOUND)
def test_an_architecture_that_is_built_wrongly_fails_its_parity_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, recipe: str
) -> None:
    # given that nobody had listed it
    monkeypatch.setattr(olive, "refuse_unsupported", lambda _: None)
    source = tiny_checkpoint(tmp_path / "source", model_type)

    with pytest.raises(
        ConversionFailed, match=r"does not say what its source says: .* their logits correlate by 0\.[0-8]"
    ):
        run_convert(source, recipe, tmp_path)


def _distribution(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
