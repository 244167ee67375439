"""Writes checkpoints by hand, without torch: what reads only headers needs no real weights."""

import json
import math
import struct
from pathlib import Path
from typing import Any

BYTES_OF = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U8": 1, "F8_E4M3": 1}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
Shapes = dict[str, tuple[str, list[int]]]

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 8,
    "vocab_size": 32,
    "num_hidden_layers": 1,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
SHAPES: Shapes = {
    "model.embed_tokens.weight": ("BF16", [32, 8]),
    "model.layers.0.mlp.down_proj.weight": ("BF16", [8, 16]),
    "model.norm.weight": ("BF16", [8]),
}
ADAPTER_CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "target_modules": ["down_proj"],
}
ADAPTER_SHAPES: Shapes = {
    "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight": ("F32", [2, 16]),
    "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight": ("F32", [8, 2]),
}


def header_of(shapes: Shapes) -> dict[str, Any]:
    """The header's table, tensors one after the other in the order given."""
    table: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + math.prod(shape) * BYTES_OF[dtype]
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return table


def safetensors_bytes(header: dict[str, Any] | bytes, data_bytes: int) -> bytes:
    """A file with this header, right or wrong, and so many bytes of weights."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data_bytes)


def write_safetensors(path: Path, shapes: Shapes) -> Path:
    header = header_of(shapes)
    path.write_bytes(safetensors_bytes(header, max(entry["data_offsets"][1] for entry in header.values())))
    return path


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def write_checkpoint(directory: Path, **config: Any) -> Path:
    """A full checkpoint; a config field given as None is left out."""
    directory.mkdir(parents=True)
    values = {key: value for key, value in (CONFIG | config).items() if value is not None}
    write_json(directory / "config.json", values)
    write_json(directory / "tokenizer.json", {})
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer", "chat_template": TEMPLATE})
    write_safetensors(directory / "model.safetensors", SHAPES)
    return directory


def write_sharded(directory: Path) -> Path:
    """The same with its weights in two files and an index."""
    write_checkpoint(directory)
    (directory / "model.safetensors").unlink()
    names = list(SHAPES)
    weight_map = {}
    for number, part in enumerate((names[:2], names[2:]), start=1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        write_safetensors(directory / shard, {name: SHAPES[name] for name in part})
        weight_map |= dict.fromkeys(part, shard)
    write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return directory


def write_adapter(directory: Path, **config: Any) -> Path:
    """A LoRA adapter over such a checkpoint."""
    directory.mkdir(parents=True)
    write_json(directory / "adapter_config.json", ADAPTER_CONFIG | config)
    write_safetensors(directory / "adapter_model.safetensors", ADAPTER_SHAPES)
    return directory
