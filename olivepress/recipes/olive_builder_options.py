"""The options of Olive's ModelBuilder pass, and of the model builder below it, as keys of a recipe. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

from olivepress.recipes.olive_reading import Options, Reading
from olivepress.recipes.recipe import Precision

# What Olive and the model builder call a recipe's keys.
QUANTIZATION = {
    "block_size": "block_size",
    "is_symmetric": "is_symmetric",
    "accuracy_level": "accuracy_level",
    "algo_config": "algorithm",
    "nodes_to_exclude": "nodes_to_exclude",
}
OPTIONS = {f"int4_{name}": key for name, key in QUANTIZATION.items()}
SEARCH = ("max_length", "temperature", "top_p", "repetition_penalty")
# Options that may stand in a file as long as they ask for nothing.
MUST_BE_OFF = {
    "enable_cuda_graph": "is for CUDA",
    "exclude_embeds": "would make a model that cannot be chatted with",
    "exclude_lm_head": "would make a model that cannot be chatted with",
    "include_hidden_states": "adds an output that Foundry Local has no use for",
    "metadata_only": "would make no model",
    "use_8bits_moe": "is for mixtures of experts, which cannot be converted",
    "use_cuda_bf16": "is for CUDA",
    "use_qdq": "would make a model of another form, which is not checked here",
    "use_webgpu_fp32": "is for WebGPU",
}


def read_builder(read: Reading, place: str, options: Options) -> None:
    """Take the options of the pass at `place` into the recipe's keys."""
    if "precision" not in options.values:
        read.refuse(f"{place}.precision", f"is missing; choose one of: {', '.join(Precision)}")
    for key, value, where in options:
        if key == "precision":
            read.take("precision", value, where)
        elif key in MUST_BE_OFF:
            if value:
                read.refuse(where, f"{MUST_BE_OFF[key]}; leave it out")
        elif key in _NESTED:
            _read_nested(read, where, key, value)
        elif not _read_option(read, where, key, value, OPTIONS):
            read.refuse(where, f"cannot be translated; leave it out, or use: {', '.join(OPTIONS)}")


def _read_nested(read: Reading, place: str, key: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _NESTED[key](read, f"{place}.{name}", name, inner)
    elif value is not None:
        read.refuse(place, "is no mapping; leave it out")


def _read_option(read: Reading, place: str, key: str, value: Any, known: Mapping[str, str]) -> bool:
    """Take a quantization option under one of its names; False where it has none."""
    if key.removeprefix("int4_") == "op_types_to_quantize":
        if value not in (None, ["MatMul"], "MatMul"):
            read.refuse(place, f"is {value!r}; only MatMul is quantized, so leave it out")
        return True
    if key not in known:
        return False
    if value is not None:
        read.take(known[key], _typed(value), place)
    return True


def _read_quantization_config(read: Reading, place: str, key: str, value: Any) -> None:
    if _read_option(read, place, key, value, QUANTIZATION):
        read.note(f"{place}: read as int4_{key}, as Olive of today spells it")
    else:
        read.refuse(place, f"cannot be translated; leave it out, or use: {', '.join(QUANTIZATION)}")


def _read_extra_option(read: Reading, place: str, key: str, value: Any) -> None:
    if key == "matmul_mixed_precision":
        read.take("mixed_precision", value, place)
    elif key == "windowed_kv_cache" and _typed(value) is False:
        # It is always off here: a cache cut to the window makes generation fail.
        return
    elif key in MUST_BE_OFF and not _typed(value):
        return
    elif not _read_option(read, place, key, value, OPTIONS | QUANTIZATION):
        known = ", ".join((*QUANTIZATION, "matmul_mixed_precision"))
        read.refuse(place, f"cannot be translated; leave it out, or use: {known}")


def _read_search(read: Reading, place: str, key: str, value: Any) -> None:
    if key in SEARCH:
        read.take(f"foundry.{key}", value, place)
        read.note(f"{place}: becomes foundry.{key} of the recipe")
    elif key == "do_sample":
        if value is False:
            read.take("foundry.temperature", 0.0, place)
            read.note(f"{place}: false becomes foundry.temperature 0 of the recipe")
    else:
        read.refuse(place, f"cannot be translated; leave it out, or use: {', '.join((*SEARCH, 'do_sample'))}")


_NESTED: dict[str, Callable[[Reading, str, str, Any], None]] = {
    "quantization_config": _read_quantization_config,
    "extra_options": _read_extra_option,
    "search": _read_search,
}


def _typed(value: Any) -> Any:
    """A value that was written for a command line, as what it means: "128", "true", "/a,/b"."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.isascii() and text.isdigit():
        return int(text)
    return text.split(",") if text.startswith("/") else text
