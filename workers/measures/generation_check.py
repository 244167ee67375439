"""Whether the settings of generation in genai_config.json, and those in inference_model.json, give sensible answers.

Unit: none; each is a finding in words. Source: onnxruntime-genai's `search` options, as its engine takes them where a
request does not set its own.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from olivepress.checkpoints.model_files import WRITING_KEYS
from olivepress.foundry.inference_model import GENAI_CONFIG_FILE, INFERENCE_MODEL_FILE
from workers.measures.reference_file import Reference

SENSIBLE: Mapping[str, tuple[float, float]] = {
    # Beyond these, tokens are drawn from noise or never twice.
    "repetition_penalty": (0.5, 2.0),
    "temperature": (0.0, 2.0),
    "top_p": (0.01, 1.0),
    "top_k": (0, 10**6),
    # Foundry Local gives one answer, token by token, and lets it end.
    "num_beams": (1, 1),
    "num_return_sequences": (1, 1),
    "min_length": (0, 16),
}
SHORTEST_REPEAT = 3
"""Tokens: where no two or three may come twice, no longer answer is a sentence."""
SHORTEST_LENGTH = 16
SAME_PENALTY = 1e-4
Config = Mapping[str, Any]


def generation_findings(artifact: Path, reference: Reference | None, notes: list[str]) -> Iterator[str]:
    """Settings that make an answer another one, or none.

    Args:
        notes: what differs from how the source was asked is added to them.
    """
    config = json.loads((artifact / GENAI_CONFIG_FILE).read_text(encoding="utf-8"))
    search: Config = config.get("search") or {}
    for name, (low, high) in SENSIBLE.items():
        value = search.get(name)
        if value is not None and not (_is_number(value) and low <= value <= high):
            asked = f"be {low:g}" if low == high else f"be between {low:g} and {high:g}"
            yield f"{GENAI_CONFIG_FILE} has the {name} {value}, which must {asked}"
    options = (config["model"].get("decoder") or {}).get("session_options") or {}
    for name in WRITING_KEYS:
        if options.get(name):
            yield f"{GENAI_CONFIG_FILE} has the session option {name}, with which the engine writes files; leave it out"
    yield from _repeats_and_length(search, config["model"])
    yield from _described(artifact, search)
    if reference is not None:
        penalty, asked = search.get("repetition_penalty", 1.0), reference.facts["repetition_penalty"]
        if _is_number(penalty) and abs(penalty - asked) > SAME_PENALTY:
            # The rungs of a ladder share a source and may differ in this.
            notes.append(f"the source answered with the repetition_penalty {asked:g}, the model does with {penalty:g}")


def _repeats_and_length(search: Config, model: Config) -> Iterator[str]:
    repeat = search.get("no_repeat_ngram_size") or 0
    if not _is_number(repeat) or 0 < repeat < SHORTEST_REPEAT or repeat < 0:
        yield (
            f"{GENAI_CONFIG_FILE} has the no_repeat_ngram_size {repeat}, which must be 0 for none, or at least "
            f"{SHORTEST_REPEAT}"
        )
    shortest = min(SHORTEST_LENGTH, model["context_length"])
    if search["max_length"] < shortest:
        yield f"{GENAI_CONFIG_FILE} has the max_length {search['max_length']}, which must be at least {shortest}"
    if search.get("do_sample") and search.get("temperature") == 0:
        yield f"{GENAI_CONFIG_FILE} draws tokens (do_sample) at the temperature 0; one of the two is not meant"


def _described(artifact: Path, search: Config) -> Iterator[str]:
    """What inference_model.json says of the same settings."""
    file = artifact / INFERENCE_MODEL_FILE
    if not file.is_file():
        return
    said = json.loads(file.read_text(encoding="utf-8")).get("ModelConfig") or {}
    for name, value in said.items():
        if name in search and search[name] != value:
            yield f"{INFERENCE_MODEL_FILE} has the {name} {value} and {GENAI_CONFIG_FILE} has {search[name]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
