"""The header of a safetensors file: names, types, shapes and places of its tensors, read without the weights.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes little-endian length N, N bytes of JSON, then the
tensors without a gap. Every rule of it is checked, so a file that was cut short or changed in its header is found in
a millisecond.
"""

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from olivepress.checkpoints.files import LFS_POINTER, refuse_lfs_pointer
from olivepress.errors import BadCheckpoint

MAX_HEADER_BYTES = 100_000_000
# No rule of the format; keeps a forged header from making its reader multiply for minutes.
MAX_DIMENSIONS = 16
# Nor this; it keeps one from making its reader compare names for minutes. Models of many experts have some 40,000.
MAX_TENSORS = 100_000
LENGTH_BYTES = 8
METADATA_KEY = "__metadata__"
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "C64": 64,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
STAT_BLOCK_BYTES = 512
HOLES_FROM_BYTES = 2**24
# File systems that compress make at most a half of weights.
MOST_COMPRESSED = 8
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file; `start` and `end` are bytes from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def element_count(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.start


@dataclass(frozen=True)
class SafetensorsFile:
    """A safetensors file whose header is in order; `tensors` are sorted by their place in the file."""

    path: Path
    size_bytes: int
    header_bytes: int
    """Bytes before the first tensor, the length field included."""
    tensors: tuple[Tensor, ...]
    metadata: dict[str, str] = field(default_factory=dict)


def read_safetensors_header(path: Path) -> SafetensorsFile:
    """Read and check the header of `path`; the weights are not read.

    Raises:
        BadCheckpoint: the file is cut short, has bytes too many, or its header breaks a rule of the format.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(len(LFS_POINTER))
        refuse_lfs_pointer(path, first)
        if len(first) < LENGTH_BYTES:
            raise BadCheckpoint(f"{path} is cut short: it has {size_bytes} bytes; copy it again")
        (header_bytes,) = struct.unpack_from("<Q", first)
        if header_bytes > MAX_HEADER_BYTES:
            raise _damaged(path, f"its first bytes announce a header of {header_bytes:,} bytes")
        if LENGTH_BYTES + header_bytes > size_bytes:
            raise BadCheckpoint(
                f"{path} is cut short: its header alone takes {LENGTH_BYTES + header_bytes:,} bytes, "
                f"the file has {size_bytes:,}; copy it again"
            )
        file.seek(LENGTH_BYTES)
        entries = _parse(path, file.read(header_bytes))
    if len(entries) > MAX_TENSORS:
        raise _damaged(path, f"its header names {len(entries):,} tensors, and no model has more than {MAX_TENSORS:,}")
    metadata = entries.pop(METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, f"{METADATA_KEY} in its header is no table of texts")
    data_start = LENGTH_BYTES + header_bytes
    tensors = sorted((_tensor(path, name, entry, data_start) for name, entry in entries.items()), key=_place)
    _check_places(path, tensors, data_start, size_bytes)
    refuse_holes(path)
    return SafetensorsFile(path, size_bytes, data_start, tuple(tensors), metadata)


def _damaged(path: Path, problem: str) -> BadCheckpoint:
    return BadCheckpoint(f"{path} is no intact safetensors file: {problem}; copy or save it again")


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.start, tensor.end


def _parse(path: Path, header: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise _damaged(path, f"'{twice}' stands twice in its header")
        return table

    if not header.startswith(b"{"):
        raise _damaged(path, "its header is no JSON object")
    try:
        entries = json.loads(header.decode(), object_pairs_hook=no_duplicates)
    # RecursionError: thousands of nested brackets. ValueError: no UTF-8, no JSON, or a number of thousands of digits.
    except (ValueError, RecursionError):
        raise _damaged(path, "its header is no JSON") from None
    if not isinstance(entries, dict):
        raise _damaged(path, "its header is no JSON object")
    return entries


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> Tensor:
    if not isinstance(entry, dict):
        raise _damaged(path, f"the entry of '{name}' is no table")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _damaged(path, f"'{name}' has the unknown type '{dtype}'")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _damaged(path, f"the shape of '{name}' is no list of counts")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise _damaged(path, f"the offsets of '{name}' are no pair of counts")
    start, end = offsets
    needed_bits = math.prod(shape) * DTYPE_BITS[dtype]
    if (end - start) * 8 != needed_bits:
        size = " × ".join(map(str, shape)) or "one"
        raise _damaged(
            path, f"'{name}' has {end - start:,} bytes, its shape ({size}, {dtype}) needs {needed_bits // 8:,}"
        )
    return Tensor(name, dtype, tuple(shape), data_start + start, data_start + end)


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    # bool is an int in Python, not in the format; more than 2^63 fits no file.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_places(path: Path, tensors: list[Tensor], data_start: int, size_bytes: int) -> None:
    expected = data_start
    for tensor in tensors:
        if tensor.start != expected:
            kind = "overlaps the tensor before it" if tensor.start < expected else "leaves a gap before it"
            raise _damaged(path, f"'{tensor.name}' {kind}")
        expected = tensor.end
    if expected > size_bytes:
        raise BadCheckpoint(
            f"{path} is cut short: its header promises {expected:,} bytes, the file has {size_bytes:,}; copy it again"
        )
    if expected < size_bytes:
        raise _damaged(path, f"{size_bytes - expected:,} bytes follow the last tensor")


def refuse_holes(path: Path) -> None:
    """Refuse a large file most of which was never stored: a copy that reserved its place and was not finished.

    Raises:
        BadCheckpoint: it is one.
    """
    state = path.stat()
    # Not everywhere known: None on Windows, 0 on some network file systems.
    stored_bytes = getattr(state, "st_blocks", 0) * STAT_BLOCK_BYTES
    if state.st_size >= HOLES_FROM_BYTES and 0 < stored_bytes < state.st_size / MOST_COMPRESSED:
        raise BadCheckpoint(
            f"{path} was never written whole: {stored_bytes:,} of its {state.st_size:,} bytes are on the disk, the "
            "rest is a hole; copy it again"
        )
