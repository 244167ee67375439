"""Checkpoints in the format of Olive's own quantization: what their integers stand for, in floating point."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from olivepress.checkpoints.files import CONFIG, WEIGHTS, WEIGHTS_INDEX, read_json, relevant_files
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


@dataclass(frozen=True)
class PackedMatrix:
    """One quantized matrix as it lies in the files, one row for each output; `zeros` is None for a symmetric one.

    Bytes hold two levels, or zero points, of four bits, the first in the lower half, or one of eight.
    """

    name: str
    rounding: Rounding
    levels: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None

    def widened(self) -> torch.Tensor:
        """(level - zero point) * scale, in fp32."""
        zero: torch.Tensor | float = 2.0 ** (self.rounding.bits - 1)
        if self.zeros is not None:
            zero = unpacked(self.zeros, self.rounding.bits)[:, : self.scales.shape[1]].unsqueeze(-1).float()
        blocks = unpacked(self.levels, self.rounding.bits).unflatten(-1, (self.scales.shape[1], -1)).float()
        return ((blocks - zero) * self.scales.float().unsqueeze(-1)).flatten(1)


def packed_matrices(directory: Path, quantization: OliveQuantization) -> Iterator[PackedMatrix]:
    """The quantized matrices of a checkpoint, one after the other."""
    with _opened(directory) as shards:
        holder = {name: shard for shard in shards.values() for name in shard.keys()}  # noqa: SIM118 (no mapping)
        for name in sorted(holder):
            if name.endswith(LEVELS):
                yield _packed(name.removesuffix(LEVELS), holder, quantization)


def widen(directory: Path, quantization: OliveQuantization, into: Path) -> dict[str, Rounding]:
    """Write the checkpoint in fp32 that a quantized one stands for.

    Returns:
        By name, how each matrix that is quantized was rounded.
    """
    into.mkdir(parents=True)
    roundings: dict[str, Rounding] = {}
    weight_map: dict[str, str] = {}
    with _opened(directory) as shards:
        holder = {name: shard for shard in shards.values() for name in shard.keys()}  # noqa: SIM118
        # One file for each of the source's, so that no more than one is in memory.
        for file_name, shard in shards.items():
            wide = {}
            for name in shard.keys():  # noqa: SIM118
                matrix, _, part = name.rpartition(".")
                if f".{part}" == LEVELS:
                    packed = _packed(matrix, holder, quantization)
                    wide[f"{matrix}.weight"], roundings[matrix] = packed.widened(), packed.rounding
                elif f".{part}" not in (SCALES, ZEROS) or matrix + LEVELS not in holder:
                    tensor = shard.get_tensor(name)
                    wide[name] = tensor.float() if tensor.is_floating_point() else tensor
            save_file(wide, into / file_name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(wide, file_name)
    if set(weight_map.values()) != {WEIGHTS}:
        (into / WEIGHTS_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    _write_others(directory, into)
    return roundings


def unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes to the levels in them, along the last axis; the first lies in the lowest bits."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return ((packed.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)


@contextmanager
def _opened(directory: Path) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        files = sorted(directory.glob("*.safetensors"))
        yield {file.name: stack.enter_context(safe_open(file, framework="pt")) for file in files}


def _packed(matrix: str, holder: Mapping[str, Any], quantization: OliveQuantization) -> PackedMatrix:
    levels, scales, zeros = (
        holder[matrix + part].get_tensor(matrix + part) if matrix + part in holder else None
        for part in (LEVELS, SCALES, ZEROS)
    )
    if levels is None or scales is None:
        raise ValueError(f"a part of '{matrix}' is missing")
    columns = int(levels.shape[1]) * 8 // quantization.of(matrix, 0).bits
    return PackedMatrix(matrix, quantization.of(matrix, columns), levels, scales, zeros)


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
