"""Merges a LoRA adapter into its base, in torch, before any conversion."""

import shutil
import warnings
from pathlib import Path

import torch
from peft import PeftConfig, PeftModelForCausalLM
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from olivepress.checkpoints.files import ADAPTER_WEIGHTS, CHAT_TEMPLATE, TOKENIZER_CONFIG, TOKENIZER_MODELS
from olivepress.checkpoints.reading import SECOND_COPY
from olivepress.checkpoints.tokenizer_files import has_tokenizer
from olivepress.errors import ConversionFailed
from workers.toolchains import parity
from workers.toolchains.failures import told_as_conversion_failure

TOKENIZER_FILES = (
    *TOKENIZER_MODELS,
    TOKENIZER_CONFIG,
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE,
)
# Rounding the merged weights to bf16 leaves 0.99995 and more even on random weights; a matrix merged wrongly, less.
MIN_CORRELATION = 0.999


def merge(adapter: Path, base: Path, into: Path, *, exact: bool) -> Path:
    """Write the checkpoint that `adapter` makes of `base` to `into` and return it.

    Args:
        exact: in fp32, so that not the least step of the training is lost; else in the base's dtype.

    The builder's own way with adapters gives wrong models for DoRA and for whole saved modules; merging first is
    exact for every kind.

    Raises:
        ConversionFailed: the adapter does not fit its base, or merging gives numbers that are not finite.
        DiskFull: no room for the merged checkpoint.
    """
    what_now = "check that the adapter was trained on this base and submit them again"
    with told_as_conversion_failure(f"merging the adapter {adapter} into its base {base}", what_now):
        with warnings.catch_warnings():
            # peft 0.21 asks for attributes that transformers 5 renamed, and warns about tied embeddings, which
            # are untied below where that is needed.
            warnings.simplefilter("ignore")
            model = _merged(adapter, base, torch.float32 if exact else "auto")
        model.save_pretrained(into)
        owner = _tokenizer_owner(adapter, base)
        for file in (file for pattern in TOKENIZER_FILES for file in owner.glob(pattern)):
            shutil.copyfile(file, into / file.name)
    return into


def _tokenizer_owner(adapter: Path, base: Path) -> Path:
    return adapter if has_tokenizer(adapter) else base


def _changes_both(config: PeftConfig) -> bool:
    """Whether what peft trains of one of two tied matrices counts for the other too."""
    return bool(getattr(config, "ensure_weight_tying", False) or getattr(config, "trainable_token_indices", None))


def _merged(adapter: Path, base: Path, dtype: torch.dtype | str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    config = PeftConfig.from_pretrained(str(adapter))
    rows = _embedding_rows(adapter)
    if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
        # Trained with tokens of its own: its saved embeddings have rows that the base lacks.
        model.resize_token_embeddings(rows, mean_resizing=False)
    if model.config.tie_word_embeddings and not _changes_both(config):
        # An adapter over one of two tied matrices would else be merged into both.
        _untie(model)
    adapted = PeftModelForCausalLM(model, config)
    loaded = adapted.load_adapter(str(adapter), adapter_name="default")
    unexpected = (name for name in loaded.unexpected_keys if not SECOND_COPY.search(name))
    if strangers := [*sorted(unexpected), *sorted(loaded.missing_keys)]:
        raise ConversionFailed(
            f"the adapter {adapter} does not fit its base {base}: {len(strangers)} of its matrices have no "
            f"counterpart, such as {strangers[0]}; submit it with the base that it was trained on"
        )
    tokens = parity.tokens_of_text(base, _tokenizer_owner(adapter, base))
    wanted = parity.model_logits(adapted.eval(), tokens)
    merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    _refuse_difference(parity.agreement(wanted, parity.model_logits(merged, tokens)), adapter)
    if torch.equal(merged.get_output_embeddings().weight, merged.get_input_embeddings().weight):
        merged.config.tie_word_embeddings = True
        merged.tie_weights()
    return merged


def _embedding_rows(adapter: Path) -> int | None:
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
            if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                return int(weights.get_slice(name).get_shape()[0])
    return None


def _untie(model: PreTrainedModel) -> None:
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False


def _refuse_difference(agreement: parity.Agreement, adapter: Path) -> None:
    if not agreement.correlation >= MIN_CORRELATION:
        raise ConversionFailed(
            f"merging the adapter {adapter} changed what the model says: its logits correlate by "
            f"{agreement.correlation:.4f} with those before, {MIN_CORRELATION} is asked; merge it by hand with "
            "peft and submit the full checkpoint"
        )
