"""What a GGUF file stands for: the config.json and the tensors of the checkpoint that it was made from. Pure.

From the header alone; `workers/toolchains/gguf_expanded.py` writes it. A file states less than a config.json does:
what it states and nothing here understands is refused rather than passed over.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from olivepress.checkpoints.gguf_architectures import (
    ARCHITECTURES,
    LONG_FACTORS,
    OUTSIDE,
    ROPE_FACTORS,
    SHORT_FACTORS,
    Architecture,
)
from olivepress.checkpoints.gguf_header import PART, PLAIN_TYPES, GgufFile, GgufTensor, damaged
from olivepress.checkpoints.gguf_rope import (
    CLOSE,
    DEFAULT_THETA,
    PUT_CONFIG,
    SCALING,
    SCALING_KEYS,
    are_factors_of,
    rope_parameters,
    shortest,
)
from olivepress.errors import BadCheckpoint, UnsupportedArchitecture

LAYER_NAME = re.compile(r"blk\.(\d{1,5})\.([a-z_]+)\.(weight|bias)")
SIZES = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
# Understood, or of no consequence for what is computed.
OTHER_KEYS = {
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.dimension_count", "rope.freq_base", "rope.freq_base_swa", "rope.scaling.type", "rope.scaling.finetuned",
    "rope.scaling.attn_factor", "vocab_size", "tensor_data_layout", *SCALING_KEYS,
}  # fmt: skip
TEXTS = {"rope.scaling.type", "tensor_data_layout"}
SUBMIT_SOURCE = "submit the checkpoint that it was made from"
# These must be the same in a config.json beside the file. The rest may be more exact there, or not in the file at all.
COMPARED = (
    "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "rms_norm_eps", "attn_logit_softcapping", "final_logit_softcapping", "attention_multiplier",
    "embedding_multiplier", "residual_multiplier", "logits_scaling",
)  # fmt: skip
ROPE_FIELDS = ("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq")
NOT_OURS = ("quantization_config", "torch_dtype", "dtype")
TOKEN_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
LOCAL_THETA = 10000.0


@dataclass(frozen=True)
class Restored:
    """A tensor of the checkpoint, and where it comes from."""

    name: str
    source: GgufTensor
    heads: int | None = None
    """Where rows are stored with the pairs of rotary embeddings side by side: of how many heads they are."""
    less_one: bool = False
    """Whether 1 is taken off, for transformers adds it."""


@dataclass(frozen=True)
class Restoration:
    """The checkpoint that a file stands for."""

    config: dict[str, Any]
    tensors: tuple[Restored, ...]


def restoration_of(file: GgufFile, beside: Mapping[str, Any] | None) -> Restoration:
    """What the file stands for.

    Args:
        beside: the config.json that lies beside it; it counts where it says more, and must not say otherwise.

    Raises:
        UnsupportedArchitecture: its architecture does not come back from GGUF as it was.
        BadCheckpoint: it is no model, or its keys and tensors are not those of its architecture.
    """
    name, architecture = _architecture(file)
    prefix = f"{name}."
    stated = {
        key.removeprefix(prefix): shortest(value) if isinstance(value, float) else value
        for key, value in file.keys.items()
        if key.startswith(prefix)
    }
    _refuse_no_numbers(file, architecture, stated)
    config = _config(file, architecture, stated, is_exact=beside is not None)
    if beside is not None:
        config = _with_config_beside(file, architecture, config, beside)
    return Restoration(config, _tensors(file, name, architecture, config))


def _architecture(file: GgufFile) -> tuple[str, Architecture]:
    kind = file.keys.get("general.type", "model")
    if kind != "model":
        raise BadCheckpoint(f"{file.path} is no model but of the type '{kind}'; submit the model itself")
    if PART.search(file.path.name) or file.keys.get("split.count", 1) not in (0, 1):
        raise BadCheckpoint(
            f"{file.path} is one part of a model; join its parts with llama.cpp (llama-gguf-split --merge) and submit "
            "the one file"
        )
    name = file.keys.get("general.architecture")
    if not isinstance(name, str):
        raise damaged(file.path, "it does not say of which architecture it is ('general.architecture')")
    if name not in ARCHITECTURES:
        raise UnsupportedArchitecture(
            f"{file.path} is of the architecture '{name[:60]}', and GGUF files are read of {', '.join(ARCHITECTURES)}; "
            "submit the checkpoint that it was made from, as safetensors"
        )
    return name, ARCHITECTURES[name]


def _config(file: GgufFile, architecture: Architecture, stated: Mapping[str, Any], *, is_exact: bool) -> dict[str, Any]:
    sizes = {field: _count(file, stated, key) for key, field in SIZES.items()}
    _refuse_unknown(file, architecture, stated, is_exact)
    heads = sizes["num_attention_heads"]
    if architecture.needs_numbers and not is_exact:
        for key in architecture.numbers:
            _positive(file, stated, key)
    head_dim = stated.get("attention.key_length", sizes["hidden_size"] // heads)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise damaged(file.path, "it has no table of embeddings ('token_embd.weight')")
    if type(head_dim) is not int or head_dim < 2 or stated.get("attention.value_length", head_dim) != head_dim:
        raise damaged(file.path, "its heads ('attention.key_length', 'attention.value_length') are of no size")
    config = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        **sizes,
        "num_key_value_heads": _count(
            file, {"attention.head_count_kv": heads} | dict(stated), "attention.head_count_kv"
        ),
        "head_dim": head_dim,
        "vocab_size": embedding.shape[0],
        "rms_norm_eps": _positive(file, stated, "attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **{field: stated[key] or None for key, field in architecture.numbers.items() if key in stated},
        **architecture.implied,
        **_token_ids(file),
    }
    if architecture.bias_fields:
        config["attention_bias"] = any(name.endswith("attn_q.bias") for name in file.tensors)
        config["mlp_bias"] = any(name.endswith("ffn_up.bias") for name in file.tensors)
    if architecture.wide_from_layers:
        is_wide = sizes["num_hidden_layers"] == architecture.wide_from_layers
        config["query_pre_attn_scalar"] = sizes["hidden_size"] // heads if is_wide else head_dim
    _positive(file, {"rope.freq_base": DEFAULT_THETA} | dict(stated), "rope.freq_base")
    return config | _rope(file, architecture, stated, config, is_exact)


def _rope(
    file: GgufFile, architecture: Architecture, stated: Mapping[str, Any], config: Mapping[str, Any], is_exact: bool
) -> dict[str, Any]:
    try:
        rope = rope_parameters(file, stated, config)
    except BadCheckpoint:
        if not is_exact:
            raise
        # The config.json beside says how.
        rope = {"rope_theta": stated.get("rope.freq_base", DEFAULT_THETA)}
    more: dict[str, Any] = {}
    if architecture.model_type == "phi3":
        more["original_max_position_embeddings"] = stated.get(
            "rope.scaling.original_context_length", config["max_position_embeddings"]
        )
    if architecture.model_type == "gemma3_text":
        local = {"rope_theta": stated.get("rope.freq_base_swa", LOCAL_THETA), "rope_type": "default"}
        return {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}
    return more | {"rope_parameters": rope}


def _refuse_unknown(file: GgufFile, architecture: Architecture, stated: Mapping[str, Any], is_exact: bool) -> None:
    unknown = sorted(set(stated) - set(SIZES) - OTHER_KEYS - set(architecture.numbers))
    unknown = [key for key in unknown if stated[key] not in (0, 0.0, False, "", [])]
    if unknown and not is_exact:
        raise BadCheckpoint(
            f"{file.path} states '{unknown[0]}' of its {architecture.model_type}, which is not understood; {PUT_CONFIG}"
        )


def _refuse_no_numbers(file: GgufFile, architecture: Architecture, stated: Mapping[str, Any]) -> None:
    for key in {*SIZES, *OTHER_KEYS, *architecture.numbers} - TEXTS:
        value = stated.get(key, 0)
        if not isinstance(value, int | float) or not math.isfinite(value):
            what = "differs by layer" if isinstance(value, list) else f"is {str(value)[:40]!r}, no number"
            raise damaged(file.path, f"'{key}' {what}", SUBMIT_SOURCE)


def _count(file: GgufFile, stated: Mapping[str, Any], key: str) -> int:
    value = stated.get(key)
    if type(value) is not int or value < 1:
        what = "is missing" if value is None else f"is {value!r}"
        raise damaged(file.path, f"'{key}' {what}", SUBMIT_SOURCE)
    return value


def _positive(file: GgufFile, stated: Mapping[str, Any], key: str) -> float:
    value = stated.get(key)
    if not isinstance(value, float) or not 0 < value < math.inf:
        what = "is missing" if value is None else f"is {value!r}"
        raise damaged(file.path, f"'{key}' {what}", SUBMIT_SOURCE)
    return value


def _token_ids(file: GgufFile) -> dict[str, int]:
    found = {field: file.keys.get(f"tokenizer.ggml.{key}") for key, field in TOKEN_IDS.items()}
    return {field: value for field, value in found.items() if type(value) is int}


def _with_config_beside(
    file: GgufFile, architecture: Architecture, config: dict[str, Any], beside: Mapping[str, Any]
) -> dict[str, Any]:
    place = file.path.parent / "config.json"
    advice = "put the config.json that belongs to it there, or take this one out"
    kind = beside.get("model_type")
    if kind not in (architecture.model_type, *architecture.also):
        raise BadCheckpoint(
            f"{place} is of a '{kind}', and {file.path.name} of a '{architecture.model_type}'; {advice}"
        )
    for name in COMPARED:
        ours, theirs = config.get(name), beside.get(name)
        if ours is not None and theirs is not None and not _is_same(ours, theirs):
            raise BadCheckpoint(f"'{name}' is {theirs!r} in {place} and {ours!r} in {file.path.name}; {advice}")
    says_rope = any(name in beside for name in ROPE_FIELDS)
    if says_rope and not _is_same_rope(file, config, beside):
        raise BadCheckpoint(f"{place} turns its rotary embeddings otherwise than {file.path.name} does; {advice}")
    ours = {name: value for name, value in config.items() if not (says_rope and name in ROPE_FIELDS)}
    # A head that is as wide as the model gives it is not in every config class.
    if config["head_dim"] == config["hidden_size"] // config["num_attention_heads"]:
        ours.pop("head_dim")
    return ours | {name: value for name, value in beside.items() if name not in NOT_OURS}


def _is_same(ours: Any, theirs: Any) -> bool:
    if type(theirs) not in (int, float) or type(ours) not in (int, float):
        return bool(ours == theirs)
    return math.isclose(ours, theirs, rel_tol=CLOSE)


def _is_same_rope(file: GgufFile, config: Mapping[str, Any], beside: Mapping[str, Any]) -> bool:
    ours = config["rope_parameters"]
    ours = ours.get("full_attention", ours)
    theirs = beside.get("rope_parameters") or beside.get("rope_scaling") or {}
    if not isinstance(theirs, dict):
        return False
    theirs = theirs.get("full_attention", theirs)
    theta = theirs.get("rope_theta", beside.get("rope_theta", ours["rope_theta"]))
    if not _is_same(ours["rope_theta"], theta):
        return False
    factors = file.floats(ROPE_FACTORS)
    if any(factor != 1.0 for factor in factors):
        return are_factors_of(theirs, factors, theta)
    kind = theirs.get("rope_type", theirs.get("type", "default"))
    said = ours.get("rope_type", kind)
    if said in SCALING:
        return bool(kind == said) and _is_same(ours.get("factor"), theirs.get("factor"))
    # What else there is, a file does not tell from none.
    return bool(kind not in SCALING)


def _tensors(file: GgufFile, name: str, architecture: Architecture, config: Mapping[str, Any]) -> tuple[Restored, ...]:
    restored: list[Restored] = []
    places: set[str] = set()
    for tensor in file.tensors.values():
        if tensor.name in (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS):
            continue
        place = _name(tensor.name, architecture)
        if place is None or place in places:
            raise BadCheckpoint(
                f"{file.path} holds '{tensor.name[:80]}', which a '{name}' has no place for, or has it twice; submit "
                "the checkpoint that it was made from"
            )
        places.add(place)
        heads = None
        if architecture.pairs_interleaved and ".attn_q." in tensor.name:
            heads = config["num_attention_heads"]
        elif architecture.pairs_interleaved and ".attn_k." in tensor.name:
            heads = config["num_key_value_heads"]
        is_in_rows = len(tensor.shape) > 1 or tensor.type in PLAIN_TYPES
        if heads and (tensor.shape[0] % (2 * heads) or not is_in_rows):
            raise damaged(file.path, f"'{tensor.name}' has {tensor.shape[0]} rows, which are no {heads} heads of pairs")
        restored.append(Restored(place, tensor, heads, architecture.norms_from_one and place.endswith("norm.weight")))
    return tuple(restored)


def _name(name: str, architecture: Architecture) -> str | None:
    if name in OUTSIDE:
        return OUTSIDE[name]
    match = LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in architecture.layer:
        return None
    return f"model.layers.{int(match[1])}.{architecture.layer[match[2]]}.{match[3]}"
