"""Writes GGUF files out of tiny checkpoints as llama.cpp's converter does, with the `gguf` package.

Compared once with that converter for each architecture: the same keys, and tensors equal bit by bit.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}
# Rows of queries and keys in the order of llama.cpp's rotary embeddings.
INTERLEAVED = ("llama", "granite", "smollm3")
FROM_ONE = ("gemma", "gemma2", "gemma3")
GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
Config = dict[str, Any]


def gguf_checkpoint(
    source: Path, directory: Path, kind: str = "F16", *, name: str = "model.gguf", keys: dict[str, Any] | None = None
) -> Path:
    """Write the checkpoint `source` as `directory`/`name` and return the directory.

    Args:
        kind: what matrices are stored in, such as F16 or Q8_0.
        keys: more keys, or other values for the usual ones; ... leaves a key out.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    architecture = ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(directory / name, architecture)
    stated = _keys(architecture, config) | _vocabulary(source, config) | (keys or {})
    writer.add_type(gguf.GGUFType.MODEL)
    for key, value in stated.items():
        _add(writer, key, value)
    number = gguf.GGMLQuantizationType[kind]
    for tensor_name, values in _tensors(source, architecture, config):
        stored = number if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor_name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return directory


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is ...:
        return
    if key == "general.architecture":
        del writer.kv_data[0][key]
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add.get(type(value), writer.add_array)(key, value)


def _keys(architecture: str, config: Config) -> dict[str, Any]:
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    head_dim = config.get("head_dim")
    size = head_dim or config["hidden_size"] // config["num_attention_heads"]
    stated: dict[str, Any] = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    }
    if head_dim:
        stated |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if architecture not in ("gemma", "gemma2"):
        stated["rope.freq_base"] = rope["rope_theta"]
    if architecture in INTERLEAVED:
        stated |= {"vocab_size": config["vocab_size"], "rope.dimension_count": size}
    if rope["rope_type"] in ("linear", "yarn"):
        stated |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        stated["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if architecture == "phi3":
        turned = int(size * rope.get("partial_rotary_factor", 1.0))
        original = config["original_max_position_embeddings"]
        stated |= {"rope.dimension_count": turned, "rope.scaling.original_context_length": original}
        stated["attention.sliding_window"] = config["sliding_window"] or 0
        if rope["rope_type"] == "longrope" and config["max_position_embeddings"] > original:
            ratio = config["max_position_embeddings"] / original
            stated["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(ratio) / math.log(original))
    if architecture in ("gemma2", "gemma3"):
        stated["attention.sliding_window"] = config["sliding_window"]
    if architecture == "gemma2":
        stated |= {name: config[name] for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    if architecture == "gemma3":
        stated["rope.freq_base_swa"] = config["rope_parameters"]["sliding_attention"]["rope_theta"]
    if architecture == "granite":
        stated |= {key: config[field] for key, field in GRANITE.items()}
    return {f"{architecture}.{key}": value for key, value in stated.items()}


def _vocabulary(source: Path, config: Config) -> dict[str, Any]:
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    words = Tokenizer.from_file(str(source / "tokenizer.json")).get_vocab()
    added = {token["content"]: 3 if token["special"] else 4 for token in tokenizer["added_tokens"]}
    tokens = sorted(words, key=lambda token: words[token])
    padded = [f"[PAD{number}]" for number in range(len(tokens), config["vocab_size"])]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    stated = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": [*tokens, *padded],
        "token_type": [*(added.get(token, 1) for token in tokens), *(5 for _ in padded)],
        "merges": merges,
        "eos_token_id": config["eos_token_id"],
        "padding_token_id": config["pad_token_id"],
        "bos_token_id": config["bos_token_id"],
    }
    template = json.loads((source / "tokenizer_config.json").read_text())["chat_template"]
    return {f"tokenizer.ggml.{key}": value for key, value in stated.items()} | {"tokenizer.chat_template": template}


def _tensors(source: Path, architecture: str, config: Config) -> Iterator[tuple[str, np.ndarray]]:
    numbers = {text: number for number, text in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[architecture], config["num_hidden_layers"])
    heads = {"attn_q.": config["num_attention_heads"], "attn_k.": config["num_key_value_heads"]}
    yield from _rope_factors(config)
    for file in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            stored_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if stored_name is None:
                raise AssertionError(f"'{name}' has no name in a {architecture}")
            values = tensor.float()
            head = next((count for part, count in heads.items() if f".{part}" in stored_name), None)
            if head and architecture in INTERLEAVED:
                values = values.reshape(head, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
            if architecture in FROM_ONE and name.endswith("norm.weight"):
                values = values + 1
            yield stored_name, np.ascontiguousarray(values.numpy())


def _rope_factors(config: Config) -> Iterator[tuple[str, np.ndarray]]:
    rope = config["rope_parameters"]
    if rope.get("rope_type") == "longrope":
        yield "rope_factors_long.weight", np.array(rope["long_factor"], dtype=np.float32)
        yield "rope_factors_short.weight", np.array(rope["short_factor"], dtype=np.float32)
    if rope.get("rope_type") != "llama3":
        return
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    frequencies = 1.0 / (rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * torch.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    yield "rope_freqs.weight", (1 / ((1 - smooth) / rope["factor"] + smooth)).numpy()
