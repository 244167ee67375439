"""A team's calibration text as tokens, and as the data set that Olive's calibrated passes read."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from olive.data.registry import Registry
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from olivepress.errors import BadManifest

log = logging.getLogger(__name__)

DATASET = "olivepress_calibration"
# All texts are put one behind the other and cut into windows of one length: some passes take no others.
WINDOW = 512
# Of more text, an even part is taken: time goes with it, and it tells little more. Measured: 2,000 tokens against
# 28,000 of general text, KL 3.2e-4 and 2.9e-4.
MOST_TOKENS = 32 * WINDOW
# Less says too little about which inputs matter. Measured: with 256 tokens of another domain GPTQ loses as much as
# rounding to the nearest level does, with 2,000 of its own a fifth.
FEWEST_TOKENS = 256

Entry = Mapping[str, Any]


def tokenized(entries: Sequence[Entry], checkpoint: Path, chat_template: str | None = None) -> list[list[int]]:
    """Windows of tokens, all of one length, at most MOST_TOKENS together.

    Chats are written with the checkpoint's own template.

    Args:
        entries: as `olivepress.recipes.calibration.CalibrationEntry` has them.
        chat_template: the template that is meant, where the checkpoint has two.

    Raises:
        BadManifest: they cannot be written with the chat template, or are too little text.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    tokens = [token for number, entry in enumerate(entries, 1) for token in _tokens(tokenizer, entry, number)]
    if len(tokens) < FEWEST_TOKENS:
        raise BadManifest(
            f"the calibration text has {len(tokens)} tokens, too few to learn from ({FEWEST_TOKENS} at least, some "
            "thousands are better); give more texts of the fine-tune's domain, or take a recipe without calibration"
        )
    length = min(WINDOW, len(tokens))
    windows = [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]
    count = min(len(windows), MOST_TOKENS // length)
    taken = [windows[number * len(windows) // count] for number in range(count)]
    log.info("calibrating with %d of %d tokens of the team's text", len(taken) * length, len(tokens))
    return taken


def data_config(windows: Sequence[Sequence[int]], file: Path) -> dict[str, Any]:
    """What a calibrated pass is told to read; the tokens are written to `file`."""
    file.write_text(json.dumps([list(window) for window in windows]))
    return {
        "name": "calibration",
        "type": "DataContainer",
        "load_dataset_config": {"type": DATASET, "params": {"file": str(file)}},
        "pre_process_data_config": {"type": "skip_pre_process"},
        "dataloader_config": {"type": "default_dataloader", "params": {"batch_size": 1, "shuffle": False}},
    }


def _tokens(tokenizer: PreTrainedTokenizerBase, entry: Entry, number: int) -> list[int]:
    if entry.get("text") is not None:
        ended = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return [*tokenizer.encode(entry["text"], verbose=False), *ended]
    messages = entry.get("messages") or _messages(entry)
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=messages[-1]["role"] != "assistant"
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise BadManifest(
            f"entry {number} of the calibration text cannot be written with the checkpoint's chat template: {error}; "
            "change its messages to what the template takes, or give it as 'text'"
        ) from error
    # The template writes the special tokens itself.
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def _messages(entry: Entry) -> list[dict[str, str]]:
    asked = [{"role": "user", "content": entry["prompt"]}]
    return asked if entry.get("completion") is None else [*asked, {"role": "assistant", "content": entry["completion"]}]


class _Windows(torch.utils.data.Dataset[tuple[dict[str, torch.Tensor], torch.Tensor]]):
    def __init__(self, windows: list[list[int]]) -> None:
        self._windows = windows

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, number: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        tokens = torch.tensor(self._windows[number])
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, tokens


@Registry.register_dataset(DATASET)  # type: ignore[untyped-decorator]
def _read_windows(file: str) -> _Windows:
    return _Windows(json.loads(Path(file).read_text()))
