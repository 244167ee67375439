"""A small sound GGUF file, written byte by byte: no library is needed for it."""

import math
import struct
from typing import Any

FORMS = {int: (4, "<I"), float: (6, "<f"), bool: (7, "<?")}
TOKENS = [*"abcdefgh", "<end>"]
LAYER = {
    "attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32),
    "attn_output": (32, 32), "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64),
}  # fmt: skip
SHAPES = {
    "token_embd.weight": (9, 32),
    "output_norm.weight": (32,),
    **{f"blk.0.{part}.weight": shape for part, shape in LAYER.items()},
}
KEYS: dict[str, Any] = {
    "general.architecture": "llama",
    "general.type": "model",
    "llama.context_length": 128,
    "llama.embedding_length": 32,
    "llama.block_count": 1,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.merges": [],
    "tokenizer.ggml.eos_token_id": 8,
    "tokenizer.chat_template": "{{ messages }}",
}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        return text(name) + struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        return text(name) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    number, form = FORMS[type(value)]
    return text(name) + struct.pack("<I", number) + struct.pack(form, value)


def gguf_bytes(keys: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> bytes:
    """A file with these keys and F32 tensors, every number of them 0.5."""
    header, data = b"".join(key(*pair) for pair in keys.items()), b""
    for name, shape in shapes.items():
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        header += text(name) + dimensions + struct.pack("<IQ", 0, len(data))
        data += struct.pack("<f", 0.5) * math.prod(shape)
        data += bytes(-len(data) % 32)
    start = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys)) + header
    return start + bytes(-len(start) % 32) + data


SOUND = gguf_bytes(KEYS, SHAPES)
WEIGHTS = sum(math.prod(shape) for shape in SHAPES.values())
HEADER_BYTES = len(SOUND) - 4 * WEIGHTS
