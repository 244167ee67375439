"""Whether the files of a model directory are all there and agree with each other: what the runtimes accept unasked.

Foundry Local loads wrong layer counts and tokenizers whose ids the model has no row for, and talks junk with them: a
load proves nothing.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from olivepress.checkpoints.chat_template import TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, read_tokenizer_config
from olivepress.errors import BadArtifact, BadCheckpoint
from olivepress.foundry.inference_model import GENAI_CONFIG_FILE
from workers.toolchains.onnx_graph import Graph, read_graph
from workers.toolchains.tokenizers import ROWLESS_TOKENS

TOKENIZER_FILE = "tokenizer.json"
WHAT_NOW = "convert the checkpoint again"


def check_format(artifact: Path) -> None:
    """Check a packaged model directory.

    Raises:
        BadArtifact: what is missing, or which two files disagree and how.
    """
    config = _genai_config(artifact)
    _check_numbers(config)
    decoder = config["model"].get("decoder") or {}
    graph_file = artifact / str(decoder.get("filename", "model.onnx"))
    _need(graph_file, artifact)
    graph = read_graph(graph_file)
    _check_weights(artifact, graph)
    _check_graph(config["model"], decoder, graph)
    _check_tokenizer(artifact, config["model"])


def _need(file: Path, artifact: Path) -> None:
    if not file.is_file():
        raise BadArtifact(f"the model directory has no {file.name}; {WHAT_NOW}")
    if not file.resolve().is_relative_to(artifact.resolve()):
        raise BadArtifact(f"{file.name} is a link to a file outside the model directory; {WHAT_NOW}")


def _genai_config(artifact: Path) -> dict[str, Any]:
    _need(artifact / GENAI_CONFIG_FILE, artifact)
    text = (artifact / GENAI_CONFIG_FILE).read_bytes().decode("utf-8", errors="replace")
    try:
        config = json.loads(text)
    except ValueError as error:
        raise BadArtifact(f"{GENAI_CONFIG_FILE} is not valid JSON ({error}); {WHAT_NOW}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise BadArtifact(f"{GENAI_CONFIG_FILE} describes no model; {WHAT_NOW}")
    return config


def _check_numbers(config: Mapping[str, Any]) -> None:
    context_length = config["model"].get("context_length")
    vocabulary = config["model"].get("vocab_size")
    max_length = (config.get("search") or {}).get("max_length")
    for name, value in (("context_length", context_length), ("vocab_size", vocabulary), ("max_length", max_length)):
        if not isinstance(value, int) or value < 1:
            raise BadArtifact(f"{GENAI_CONFIG_FILE} has no usable {name} ({value}); {WHAT_NOW}")
    if max_length > context_length:
        raise BadArtifact(
            f"{GENAI_CONFIG_FILE} lets answers grow to {max_length} tokens in a context of {context_length}; {WHAT_NOW}"
        )


def _check_weights(artifact: Path, graph: Graph) -> None:
    for external in graph.external_files:
        file = artifact / external.path
        _need(file, artifact)
        size = file.stat().st_size
        if size < external.needed_bytes:
            raise BadArtifact(
                f"{external.path} ends at {size} bytes and the graph reads {external.needed_bytes}; {WHAT_NOW}"
            )


def _check_graph(model: Mapping[str, Any], decoder: Mapping[str, Any], graph: Graph) -> None:
    logits = graph.outputs.get("logits")
    if not logits:
        raise BadArtifact(f"the graph has no output 'logits'; {WHAT_NOW}")
    if logits[-1] is not None and logits[-1] != model["vocab_size"]:
        raise BadArtifact(
            f"the graph gives {logits[-1]} logits and {GENAI_CONFIG_FILE} has a vocabulary of {model['vocab_size']}; "
            f"{WHAT_NOW}"
        )
    layers = {int(number) for name in graph.outputs for number in re.findall(r"present\D*\.(\d+)", name)}
    wanted = decoder.get("num_hidden_layers")
    if layers and layers != set(range(wanted or 0)):
        raise BadArtifact(f"the graph has {len(layers)} layers and {GENAI_CONFIG_FILE} has {wanted}; {WHAT_NOW}")
    heads, head_size = decoder.get("num_key_value_heads"), decoder.get("head_size")
    for name, shape in graph.inputs.items():
        # (batch, heads, length, head size); the builder leaves batch and length open.
        if not name.startswith("past_key_values.") or len(shape) != 4:
            continue
        if shape[1] not in (None, heads):
            raise BadArtifact(
                f"{name} of the graph has {shape[1]} heads and {GENAI_CONFIG_FILE} has {heads}; {WHAT_NOW}"
            )
        if shape[3] not in (None, head_size):
            raise BadArtifact(
                f"{name} of the graph has heads of {shape[3]} numbers and {GENAI_CONFIG_FILE} has the head_size "
                f"{head_size}; {WHAT_NOW}"
            )


def _check_tokenizer(artifact: Path, model: Mapping[str, Any]) -> None:
    _need(artifact / TOKENIZER_FILE, artifact)
    _need(artifact / TOKENIZER_CONFIG_FILE, artifact)
    _need(artifact / TEMPLATE_FILE, artifact)
    try:
        config = read_tokenizer_config(artifact)
        tokenizer = json.loads((artifact / TOKENIZER_FILE).read_text(encoding="utf-8"))
        ids = _token_ids(tokenizer)
    except (BadCheckpoint, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadArtifact(f"the tokenizer's files cannot be read ({error}); {WHAT_NOW}") from error
    if not config.get("tokenizer_class"):
        raise BadArtifact(f"{TOKENIZER_CONFIG_FILE} names no tokenizer_class; {WHAT_NOW}")
    if config.get("chat_template") != (artifact / TEMPLATE_FILE).read_text(encoding="utf-8"):
        raise BadArtifact(f"{TOKENIZER_CONFIG_FILE} and {TEMPLATE_FILE} hold different chat templates; {WHAT_NOW}")
    highest = max(ids, default=-1)
    if highest >= model["vocab_size"]:
        raise BadArtifact(
            f"the tokenizer has token {highest} and the model only {model['vocab_size']} rows; use the tokenizer that "
            "belongs to the checkpoint"
        )
    ends = model.get("eos_token_id")
    for token in ends if isinstance(ends, list) else [ends]:
        if not isinstance(token, int) or not 0 <= token < model["vocab_size"]:
            raise BadArtifact(
                f"{GENAI_CONFIG_FILE} ends answers with token {token}, which the model has not; {WHAT_NOW}"
            )


def _token_ids(tokenizer: Mapping[str, Any]) -> list[int]:
    """Ids of all tokens that text can turn into. A unigram vocabulary is a list, others map a token to its id."""
    vocabulary = tokenizer["model"]["vocab"]
    ids = (
        list(range(len(vocabulary)))
        if isinstance(vocabulary, list)
        else [int(number) for number in vocabulary.values()]
    )
    added = tokenizer.get("added_tokens") or []
    return ids + [int(token["id"]) for token in added if token["content"] not in ROWLESS_TOKENS]
