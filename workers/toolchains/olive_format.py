"""Checkpoints in the format of Olive's own quantization: what their integers stand for, in floating point."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from olivepress.checkpoint_files import CONFIG, WEIGHTS, WEIGHTS_INDEX, read_json, relevant_files
from workers.toolchains.rounding import Rounding

METHOD = "olive"
LEVELS, SCALES, ZEROS = ".qweight", ".scales", ".qzeros"


@dataclass(frozen=True)
class OliveQuantization:
    """The `quantization_config` of such a checkpoint."""

    values: Mapping[str, Any]

    def of(self, matrix: str, columns: int) -> Rounding:
        """How the matrix of this name is rounded; a matrix may differ from the others."""
        own = self.values | ((self.values.get("overrides") or {}).get(matrix) or {})
        size = own["group_size"]
        return Rounding(own["bits"], size if size > 0 else columns, is_symmetric=own["symmetric"])


def read_olive_quantization(directory: Path) -> OliveQuantization | None:
    """What config.json says of it; None for a checkpoint in another format, or in floating point."""
    stated = read_json(directory / CONFIG).get("quantization_config") or {}
    return OliveQuantization(stated) if stated.get("quant_method") == METHOD else None


def widen(directory: Path, quantization: OliveQuantization, into: Path) -> dict[str, Rounding]:
    """Write the checkpoint in fp32 that a quantized one stands for; every product of a level and its scale is exact.

    Returns:
        By name, how each matrix that is quantized was rounded.
    """
    into.mkdir(parents=True)
    roundings: dict[str, Rounding] = {}
    weight_map: dict[str, str] = {}
    with ExitStack() as stack:
        shards = {file.name: stack.enter_context(safe_open(file, framework="pt")) for file in _weight_files(directory)}
        holder = {name: shard for shard in shards.values() for name in shard.keys()}  # noqa: SIM118 (no mapping)

        def read(name: str) -> torch.Tensor | None:
            return holder[name].get_tensor(name) if name in holder else None

        # One file for each of the source's, so that no more than one is in memory.
        for file_name, shard in shards.items():
            wide = {}
            for name in shard.keys():  # noqa: SIM118
                matrix, _, part = name.rpartition(".")
                if f".{part}" == LEVELS:
                    wide[f"{matrix}.weight"], roundings[matrix] = _widened(matrix, read, quantization)
                elif f".{part}" not in (SCALES, ZEROS) or matrix + LEVELS not in holder:
                    tensor = shard.get_tensor(name)
                    wide[name] = tensor.float() if tensor.is_floating_point() else tensor
            save_file(wide, into / file_name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(wide, file_name)
    if set(weight_map.values()) != {WEIGHTS}:
        (into / WEIGHTS_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    _write_others(directory, into)
    return roundings


def with_zero_points(tensors: dict[str, torch.Tensor], quantization: OliveQuantization) -> dict[str, torch.Tensor]:
    """The tensors of one file, with the zero points of symmetric matrices, which are left out, written out.

    onnxruntime-genai 0.18's builder joins queries, keys and values and expects zero points there.
    """
    added = {}
    for name, scales in tensors.items():
        matrix = name.removesuffix(SCALES)
        if not name.endswith(SCALES) or matrix + ZEROS in tensors or matrix + LEVELS not in tensors:
            continue
        bits = quantization.of(matrix, 0).bits
        middle = sum(2 ** (bits - 1) << place for place in range(0, 8, bits))
        added[matrix + ZEROS] = torch.full(
            (scales.shape[0], -(-scales.shape[1] * bits // 8)), middle, dtype=torch.uint8
        )
    return tensors | added


def unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes to the levels in them, along the last axis; the first lies in the lowest bits."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return ((packed.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)


def _weight_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def _widened(
    matrix: str, read: Callable[[str], torch.Tensor | None], quantization: OliveQuantization
) -> tuple[torch.Tensor, Rounding]:
    """(level - zero point) * scale, one row for each output; and how it was rounded."""
    levels, scales, zeros = (read(matrix + part) for part in (LEVELS, SCALES, ZEROS))
    if levels is None or scales is None:
        raise ValueError(f"a part of '{matrix}' is missing")
    bits = quantization.of(matrix, 0).bits
    wide = unpacked(levels, bits)
    zero: torch.Tensor | float = 2.0 ** (bits - 1)
    if zeros is not None:
        zero = unpacked(zeros, bits)[:, : scales.shape[1]].unsqueeze(-1).float()
    blocks = wide.unflatten(-1, (scales.shape[1], -1)).float()
    return ((blocks - zero) * scales.float().unsqueeze(-1)).flatten(1), quantization.of(matrix, wide.shape[1])


def _write_others(directory: Path, into: Path) -> None:
    config = read_json(directory / CONFIG)
    if config.pop("quantization_config").get("tie_word_embeddings"):
        # Olive unties them to quantize both, and ties their integers again.
        config["tie_word_embeddings"] = True
    (into / CONFIG).write_text(json.dumps(config | {"dtype": "float32"}))
    for file in relevant_files(directory):
        if file.suffix != ".safetensors" and file.name not in (CONFIG, WEIGHTS_INDEX):
            target = into / file.relative_to(directory)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
