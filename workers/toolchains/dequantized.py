"""Writes the floating-point checkpoint that a GPTQ or AWQ checkpoint stands for.

Every recipe then works on it, and what is built can be compared with it. Nothing of the source is lost: a quantized
weight is a whole number of steps, which floating point holds; the recipe rounds anew.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from olivepress.checkpoints.files import CONFIG, WEIGHTS_INDEX, read_json, relevant_files
from olivepress.checkpoints.prequantized import GROUPS, PACKED, SCALES, ZEROS, Method, Quantization, read_quantization
from olivepress.checkpoints.weight_files import find_weights
from workers.toolchains.failures import told_as_conversion_failure

# Within each word AWQ puts the even outputs first.
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
PARTS = (ZEROS, SCALES, GROUPS)
NOT_COPIED = (CONFIG, WEIGHTS_INDEX, "quantize_config.json", "quant_config.json")


def plain(directory: Path, into: Path, *, exact: bool) -> Path:
    """The checkpoint to build from: `directory` itself, or, where it is quantized, what it stands for, in `into`.

    Args:
        exact: write fp32, which holds every product of a step and its scale; else the dtype of the scales.

    Raises:
        ConversionFailed: its tensors cannot be read as its config.json says.
        DiskFull: no room for it.
    """
    config = read_json(directory / CONFIG)
    quantization = read_quantization(directory, config)
    if quantization is None:
        return directory
    with told_as_conversion_failure(f"widening the weights of {directory}", "save or copy the checkpoint again"):
        into.mkdir(parents=True)
        _write_weights([file.path for file in find_weights(directory)], into, quantization, exact=exact)
        del config["quantization_config"]
        (into / CONFIG).write_text(json.dumps(config | ({"dtype": "float32"} if exact else {})))
        for file in relevant_files(directory):
            if file.suffix != ".safetensors" and file.name not in NOT_COPIED:
                target = into / file.relative_to(directory)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)
    return into


def _write_weights(shards: list[Path], into: Path, quantization: Quantization, *, exact: bool) -> None:
    """One file for each of the source's, so that no more than one is in memory; and their index."""
    with ExitStack() as stack:
        opened = {shard.name: stack.enter_context(safe_open(shard, framework="pt")) for shard in shards}
        holder = {name: file for file in opened.values() for name in file.keys()}  # noqa: SIM118 (no mapping)

        def read(name: str) -> torch.Tensor | None:
            return holder[name].get_tensor(name) if name in holder else None

        weight_map: dict[str, str] = {}
        for shard, file in opened.items():
            tensors = {}
            for name in file.keys():  # noqa: SIM118
                if name.endswith(PACKED):
                    matrix = name.removesuffix(PACKED)
                    tensors[f"{matrix}.weight"] = _widened(matrix, read, quantization, exact=exact)
                elif not any(name.endswith(part) and name.removesuffix(part) + PACKED in holder for part in PARTS):
                    plain_tensor = file.get_tensor(name)
                    tensors[name] = plain_tensor.float() if exact and plain_tensor.is_floating_point() else plain_tensor
            save_file(tensors, into / shard, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, shard)
    (into / WEIGHTS_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _widened(
    matrix: str, read: Callable[[str], torch.Tensor | None], quantization: Quantization, *, exact: bool
) -> torch.Tensor:
    """(level - zero point) * scale, one row for each output."""
    packed, zeros, scales = (read(matrix + part) for part in (PACKED, ZEROS, SCALES))
    if packed is None or zeros is None or scales is None:
        raise ValueError(f"a part of '{matrix}' is missing")
    bits = quantization.bits
    if quantization.method is Method.GPTQ:
        levels = _unpacked(packed.T, bits).T
        zeros = _unpacked(zeros, bits)
    else:
        levels, zeros = (_unpacked(words, bits, AWQ_ORDER) for words in (packed, zeros))
    if quantization.zero_is_less_one:
        zeros = zeros + 1
    inputs, groups = levels.shape[0], scales.shape[0]
    order = read(matrix + GROUPS)
    group = order.long() if order is not None else torch.arange(inputs) // (inputs // groups)
    weight = (levels - zeros[group]).float() * scales.float()[group]
    return weight.T.contiguous().to(torch.float32 if exact else scales.dtype)


def _unpacked(words: torch.Tensor, bits: int, order: Sequence[int] | None = None) -> torch.Tensor:
    """Words of 32 bits to the levels in them, along the last axis; `order` names the place of each in its word."""
    places = torch.tensor(order if order is not None else range(32 // bits)) * bits
    return ((words.unsqueeze(-1) >> places) & (2**bits - 1)).flatten(-2)
