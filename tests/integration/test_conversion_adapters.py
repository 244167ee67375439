"""Adapters are merged into their base before they are converted."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from olivepress.errors import ConversionFailed
from tests.checkpoints import CHAT_TEMPLATE, tiny_adapter, tiny_checkpoint, write_tokenizer
from tests.integration.conversion_cases import in_torch, logits_in_runtime, logits_in_torch, run_convert
from tests.integration.ingest_cases import run as ingest

pytestmark = pytest.mark.toolchain


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bases")
    for architecture in ("qwen2", "llama", "phi3"):
        tiny_checkpoint(root / architecture, architecture, dtype=torch.float32)
    return root


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        pytest.param("qwen2", {}, id="every linear layer"),
        pytest.param("llama", {"target_modules": ["q_proj", "v_proj"], "rslora": True, "r": 8}, id="rank-stabilised"),
        pytest.param("phi3", {"dora": True}, id="dora"),
        pytest.param("qwen2", {"modules_to_save": ["lm_head"]}, id="a saved head over tied embeddings"),
        pytest.param("llama", {"target_modules": ["embed_tokens", "o_proj"]}, id="over one of two tied matrices"),
        pytest.param("qwen2", {"modules_to_save": ["embed_tokens", "lm_head"]}, id="embeddings and head trained"),
        pytest.param("phi3", {"rslora": True, "dora": True, "alpha": 32}, id="dora, rank-stabilised, a large alpha"),
        pytest.param("qwen2", {"modules_to_save": ["input_layernorm"]}, id="saved norms"),
        pytest.param("qwen2", {"tokens": [45, 50, 509], "spread": 0.2}, id="some tokens of tied embeddings"),
    ],
)
def test_a_converted_adapter_answers_as_it_does_over_its_base(
    bases: Path, tmp_path: Path, architecture: str, kind: dict[str, Any]
) -> None:
    base = bases / architecture
    adapter = _adapter(tmp_path / "adapter", base, **kind)

    run_convert(adapter, "cpu-fp32", tmp_path, base=base)

    converted = logits_in_runtime(tmp_path / "output")
    np.testing.assert_allclose(converted, logits_in_torch(_unmerged(adapter, base)), atol=2e-3)
    assert np.abs(converted - logits_in_torch(in_torch(base))).max() > 1.0


@pytest.mark.parametrize("kind", [{}, {"dora": True}, {"rslora": True}], ids=str)
def test_the_merged_checkpoint_is_what_peft_merges(tmp_path: Path, kind: dict[str, Any]) -> None:
    # given a base in 16 bits and steps of training that 16 bits would swallow
    base = tiny_checkpoint(tmp_path / "base", "qwen2", tied=False)
    adapter = _adapter(tmp_path / "adapter", base, spread=0.005, **kind)

    run_convert(adapter, "cpu-fp32", tmp_path, base=base)

    own = _unmerged(adapter, base).merge_and_unload().state_dict()
    merged = load_file(tmp_path / "scratch" / "merged" / "model.safetensors")
    assert merged.keys() == own.keys()
    for name, tensor in merged.items():
        assert torch.equal(tensor, own[name]), name
    np.testing.assert_allclose(
        logits_in_runtime(tmp_path / "output"), logits_in_torch(_unmerged(adapter, base)), atol=1e-3
    )


def test_the_merged_weights_keep_the_dtype_of_the_base(bases: Path, tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", "qwen2", dtype=torch.float16)

    run_convert(_adapter(tmp_path / "adapter", base), "cpu-int4", tmp_path, base=base)

    merged = load_file(tmp_path / "scratch" / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.float16}


def test_an_adapters_own_tokenizer_wins(bases: Path, tmp_path: Path) -> None:
    adapter = _adapter(tmp_path / "adapter", bases / "qwen2")
    own_template = CHAT_TEMPLATE.replace("<|im_start|>", "<|im_start|>the ")
    write_tokenizer(adapter, chat_template=own_template)

    run_convert(adapter, "cpu-fp32", tmp_path, base=bases / "qwen2")

    assert (tmp_path / "output" / "chat_template.jinja").read_text() == own_template


def test_an_adapter_of_another_base_is_refused_by_its_name(bases: Path, tmp_path: Path) -> None:
    adapter = _adapter(tmp_path / "adapter", bases / "qwen2", target_modules=["q_proj"])
    matrices = load_file(adapter / "adapter_model.safetensors")
    strange = {name.replace("layers.1.", "layers.7."): matrix for name, matrix in matrices.items()}
    save_file(strange, adapter / "adapter_model.safetensors")

    with pytest.raises(ConversionFailed, match=r"does not fit its base .*layers\.7\."):
        run_convert(adapter, "cpu-fp32", tmp_path, base=bases / "qwen2")
    assert not list((tmp_path / "output").iterdir())


def test_an_adapter_with_numbers_that_are_not_finite_is_refused(bases: Path, tmp_path: Path) -> None:
    adapter = _adapter(tmp_path / "adapter", bases / "qwen2")
    matrices = load_file(adapter / "adapter_model.safetensors")
    next(iter(matrices.values()))[0, 0] = float("nan")
    save_file(matrices, adapter / "adapter_model.safetensors")

    with pytest.raises(ConversionFailed, match="merging the adapter"):
        run_convert(adapter, "cpu-fp32", tmp_path, base=bases / "qwen2")


def test_an_adapter_trained_with_more_tokens_than_its_base_has_converts(bases: Path, tmp_path: Path) -> None:
    larger = tiny_checkpoint(tmp_path / "larger", "qwen2", tied=False, vocab_size=520)
    base = tiny_checkpoint(tmp_path / "base", "qwen2", tied=False)
    adapter = _adapter(tmp_path / "adapter", larger, modules_to_save=["embed_tokens", "lm_head"])

    run_convert(adapter, "cpu-fp32", tmp_path, base=base)

    genai_config = json.loads((tmp_path / "output" / "genai_config.json").read_text())
    assert genai_config["model"]["vocab_size"] == 520


def test_an_adapter_brings_the_tokenizer_that_its_base_has_not(bases: Path, tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", "qwen2")
    adapter = _adapter(tmp_path / "adapter", base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).rename(adapter / name)

    run_convert(adapter, "cpu-fp32", tmp_path, base=base)

    assert (tmp_path / "output" / "tokenizer.json").is_file()


def test_what_peft_saves_twice_where_the_vocabulary_grew_is_no_stranger(tmp_path: Path) -> None:
    # given: peft saves embeddings of another size a second time, under the names that its own modules give them
    larger = tiny_checkpoint(tmp_path / "larger", "qwen2", tied=False, vocab_size=520)
    base = tiny_checkpoint(tmp_path / "base", "qwen2", tied=False)
    adapter = _adapter(tmp_path / "adapter", larger, modules_to_save=["embed_tokens", "lm_head"])
    matrices = load_file(adapter / "adapter_model.safetensors")
    plain = in_torch(base)
    plain.resize_token_embeddings(520, mean_resizing=False)
    wanted = logits_in_torch(_unmerged(adapter, plain))
    for name in [name for name in matrices if name.endswith(("embed_tokens.weight", "lm_head.weight"))]:
        for inside in ("modules_to_save", "original_module"):
            matrices[name.replace(".weight", f".{inside}.weight")] = matrices[name].clone()
    save_file(matrices, adapter / "adapter_model.safetensors")

    ingested = ingest(adapter, base)
    run_convert(adapter, "cpu-fp32", tmp_path, base=base)

    assert ingested["vocabulary_size"] == 520
    converted = logits_in_runtime(tmp_path / "output")
    np.testing.assert_allclose(converted, wanted, atol=2e-3)


def _adapter(directory: Path, base: Path, **kind: Any) -> Path:
    with warnings.catch_warnings():
        # peft warns about what tied embeddings do to an adapter; here this is the case that is tried.
        warnings.simplefilter("ignore")
        return tiny_adapter(directory, base, **kind)


def _unmerged(adapter: Path, base: Path | PreTrainedModel) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(in_torch(base) if isinstance(base, Path) else base, adapter).eval()
