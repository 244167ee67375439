"""The tokens that end an answer: named by config.json, generation_config.json, the tokenizer and its chat template."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from olivepress.checkpoints.chat_template import ChatTemplate, end_of_turn
from olivepress.checkpoints.files import CONFIG, GENERATION_CONFIG, read_json
from olivepress.checkpoints.reading import Checkpoint
from olivepress.errors import BadCheckpoint
from workers.toolchains.architecture import ModelFacts

SET_STOP = "set 'eos_token_id' to the token it was trained with"
# Settings of generation that engines read as numbers.
NUMBERS = ("temperature", "top_k", "top_p", "repetition_penalty", "max_length", "max_new_tokens", "min_length")
TOKENS = ("bos_token_id", "pad_token_id")


def check_stops(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, model: ModelFacts) -> list[str]:
    """See that an answer can end, and with control tokens only. The tokenizer has its chat template already.

    Returns:
        Notes: what is unusual and no reason to refuse.

    Raises:
        BadCheckpoint: no token is named, or one that cannot be.
    """
    directory = checkpoint.model.directory
    generation = _generation_config(directory)
    stated = {CONFIG: list(model.stop_ids), GENERATION_CONFIG: _ids(directory, generation.get("eos_token_id"))}
    if not any(stated.values()) and tokenizer.eos_token_id is None:
        raise BadCheckpoint(
            f"neither {directory / CONFIG} nor the tokenizer names an end-of-sequence token, so the model would never "
            "stop; set 'eos_token_id' there, or 'eos_token' in tokenizer_config.json"
        )
    notes = []
    for name, stops in stated.items():
        for stop in stops:
            _check_stop(directory / name, stop, tokenizer, model)
        unknown = [stop for stop in stops if tokenizer.convert_ids_to_tokens(stop) is None]
        if unknown:
            said = f"{directory / name} ends answers with token {unknown[0]}, which the tokenizer does not have"
            if len(unknown) == len(stops):
                raise BadCheckpoint(f"{said}; save the tokenizer that belongs to the weights, or {SET_STOP}")
            notes.append(said)
    return notes + _turn_notes(tokenizer, {stop for stops in stated.values() for stop in stops})


def _generation_config(directory: Path) -> dict[str, Any]:
    path = directory / GENERATION_CONFIG
    if not path.is_file():
        return {}
    config = read_json(path)
    for key in NUMBERS:
        if not isinstance(config.get(key), int | float | None) or isinstance(config.get(key), bool):
            raise BadCheckpoint(
                f"'{key}' in {path} is {config[key]!r}, which is no number; put one there, or take it out"
            )
    for key in TOKENS:
        _ids(directory, config.get(key), key)
    return config


def _ids(directory: Path, value: Any, key: str = "eos_token_id") -> list[int]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int for item in listed):
        raise BadCheckpoint(
            f"'{key}' in {directory / GENERATION_CONFIG} is {value!r}, which is no token's number; {SET_STOP}"
        )
    return listed


def _check_stop(config: Path, stop: int, tokenizer: PreTrainedTokenizerBase, model: ModelFacts) -> None:
    if not 0 <= stop < model.vocabulary_size:
        raise BadCheckpoint(
            f"{config} ends answers with token {stop}, and the model has only {model.vocabulary_size:,}; {SET_STOP}"
        )
    if stop in tokenizer.added_tokens_decoder or stop in tokenizer.all_special_ids:
        return
    word = tokenizer.decode([stop])
    if word.strip().isalnum():
        raise BadCheckpoint(f"{config} ends answers with token {stop}, which is the ordinary text '{word}'; {SET_STOP}")


def _turn_notes(tokenizer: PreTrainedTokenizerBase, stops: set[int]) -> list[str]:
    ending = turn_end_id(tokenizer)
    if ending is None or ending in stops or ending == tokenizer.eos_token_id:
        return []
    return [
        f"the chat template ends an answer with '{tokenizer.convert_ids_to_tokens(ending)}' (token {ending}), which "
        "neither config.json nor the tokenizer names as an end; the published model stops there too"
    ]


def turn_end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the tokenizer's chat template writes after an answer; None for none of its own."""
    if not isinstance(tokenizer.chat_template, str):
        return None
    added = {token.content: int(number) for number, token in tokenizer.added_tokens_decoder.items()}
    ending = end_of_turn(ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens_map), added)
    return None if ending is None else added[ending]
