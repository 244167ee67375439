"""Rotary embeddings as a GGUF file states them, and as transformers' config.json does. Pure."""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from olivepress.checkpoints.gguf_architectures import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS
from olivepress.checkpoints.gguf_header import GgufFile, damaged
from olivepress.errors import BadCheckpoint

PUT_CONFIG = "put the config.json of the checkpoint that it was made from beside it"
DEFAULT_THETA = 10000.0
# Llama 3 states these four in its config.json, its GGUF files only what follows from them.
LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0
LLAMA3_CONTEXTS = tuple(2**power for power in range(8, 18))
CLOSE = 1e-4
LARGEST = 3.4e38
SCALING = {"linear": ("factor",), "yarn": ("factor", "original_max_position_embeddings")}
SCALING_KEYS = {
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}


def rope_parameters(file: GgufFile, stated: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The `rope_parameters` of config.json.

    Args:
        stated: the file's keys of its architecture, without the name of that.
        config: what config.json says otherwise: head_dim, max_position_embeddings.

    Raises:
        BadCheckpoint: the file scales its angles in a way that is not read.
    """
    theta = stated.get("rope.freq_base", DEFAULT_THETA)
    rope: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    turned = stated.get("rope.dimension_count", config["head_dim"])
    if turned != config["head_dim"]:
        rope["partial_rotary_factor"] = turned / config["head_dim"]
    long, short, factors = (file.floats(name) for name in (LONG_FACTORS, SHORT_FACTORS, ROPE_FACTORS))
    if long or short:
        return rope | _longrope(file, stated, config, (long, short))
    if any(factor != 1.0 for factor in factors):
        return rope | _llama3(file, factors, theta)
    return rope | _scaling(file, stated)


def _scaling(file: GgufFile, stated: Mapping[str, Any]) -> dict[str, Any]:
    kind = stated.get("rope.scaling.type", "none")
    if kind in ("none", "longrope"):
        return {}
    found = {field: stated[key] for key, field in SCALING_KEYS.items() if key in stated}
    if kind not in SCALING or any(field not in found for field in SCALING[kind]):
        raise BadCheckpoint(
            f"{file.path} scales its rotary embeddings in a way that is not read ('{kind}'); {PUT_CONFIG}"
        )
    if kind == "linear":
        found = {"factor": found["factor"]}
    return {"rope_type": kind} | found


def _longrope(
    file: GgufFile,
    stated: Mapping[str, Any],
    config: Mapping[str, Any],
    factors: tuple[Sequence[float], Sequence[float]],
) -> dict[str, Any]:
    original = stated.get("rope.scaling.original_context_length")
    turned = stated.get("rope.dimension_count", config["head_dim"])
    if type(original) is not int or original < 2 or any(len(each) != turned // 2 for each in factors):
        raise damaged(file.path, f"its factors of LongRoPE are not {turned // 2}, or it does not say of which context")
    ratio = config["max_position_embeddings"] / original
    usual = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
    if abs(stated.get("rope.scaling.attn_factor", usual) - usual) > CLOSE:
        raise BadCheckpoint(f"{file.path} scales its attention otherwise than LongRoPE does; {PUT_CONFIG}")
    long, short = ([shortest(value) for value in each] for each in factors)
    return {
        "rope_type": "longrope",
        "long_factor": long,
        "short_factor": short,
        "original_max_position_embeddings": original,
    }


def _llama3(file: GgufFile, factors: Sequence[float], theta: float) -> dict[str, Any]:
    for context in LLAMA3_CONTEXTS:
        rope = {
            "rope_type": "llama3",
            "factor": shortest(max(factors)),
            "low_freq_factor": LLAMA3_LOW,
            "high_freq_factor": LLAMA3_HIGH,
            "original_max_position_embeddings": context,
        }
        if are_factors_of(rope, factors, theta):
            return rope
    raise BadCheckpoint(f"{file.path} scales its rotary embeddings otherwise than Llama 3 does; {PUT_CONFIG}")


def are_factors_of(rope: Mapping[str, Any], factors: Sequence[float], theta: float) -> bool:
    """Whether these are the factors that Llama 3's scaling divides its frequencies by, one for each pair."""
    try:
        factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
        context = float(rope["original_max_position_embeddings"])
        wanted = [
            _llama3_factor(theta ** (pair / len(factors)), factor, low, high, context) for pair in range(len(factors))
        ]
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return False
    return all(abs(a - b) <= CLOSE * abs(b) for a, b in zip(factors, wanted, strict=True))


def _llama3_factor(wavelength: float, factor: float, low: float, high: float, context: float) -> float:
    turns = context / (2 * math.pi * wavelength)
    if turns > high:
        return 1.0
    if turns < low:
        return factor
    smooth = (turns - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)


def shortest(value: float) -> float:
    """The number with the fewest digits that is the same in 32 bits: 1e-06 was written, 9.99999997e-07 is read."""
    if not math.isfinite(value) or abs(value) > LARGEST:
        return value
    stored = struct.pack("<f", value)
    for digits in range(1, 10):
        rounded = float(f"{value:.{digits}g}")
        if struct.pack("<f", rounded) == stored:
            return rounded
    return value
