"""The header of a GGUF file: its keys, and the names, types, shapes and places of its tensors, without the weights.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): "GGUF", version, number of tensors, number of keys,
the keys with typed values, the tensors' descriptions, then, at the next multiple of the alignment, their bytes.
"""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olivepress.checkpoints.files import LFS_POINTER, refuse_lfs_pointer
from olivepress.checkpoints.safetensors_header import MAX_TENSORS, refuse_holes
from olivepress.errors import BadCheckpoint

MAGIC = b"GGUF"
VERSIONS = (2, 3)
BIG_ENDIAN = tuple(version << 24 for version in VERSIONS)
# The largest have some 20 MB: a vocabulary of 262,144 tokens with its merges.
FIRST_READ_BYTES = 2**25
MAX_HEADER_BYTES = 2**28
# No rules of the format; they keep a forged header from holding its reader up.
MAX_KEYS = 100_000
MAX_DIMENSIONS = 4
# The largest vocabularies have 262,144 tokens and twice as many merges.
MAX_ENTRIES = 2**21
# Of a tensor that is read with the header: factors of rotary embeddings, one for each pair of a head.
MAX_FLOATS = 4096
DEFAULT_ALIGNMENT = 32
STRING, ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Number in the file to name, weights in a block, bytes of a block.
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
PLAIN_TYPES = ("F32", "F16", "BF16")
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
COPY_AGAIN = "copy it again"


@dataclass(frozen=True)
class GgufTensor:
    """One tensor; `shape` is written as torch does, rows first, `start` counts from the beginning of the file."""

    name: str
    type_number: int
    shape: tuple[int, ...]
    start: int
    size_bytes: int

    @property
    def type(self) -> str:
        """Its type by name, such as Q4_K."""
        return TYPES[self.type_number][0]

    @property
    def element_count(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file whose header is in order; `header_bytes` is where its first tensor may begin."""

    path: Path
    size_bytes: int
    header_bytes: int
    keys: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def floats(self, name: str) -> tuple[float, ...]:
        """The numbers of a small F32 tensor; none where the file does not have it.

        Raises:
            BadCheckpoint: it is of another type.
        """
        if (tensor := self.tensors.get(name)) is None:
            return ()
        if tensor.type != "F32" or len(tensor.shape) != 1 or tensor.element_count > MAX_FLOATS:
            raise damaged(self.path, f"'{name}' is no short list of F32")
        with self.path.open("rb") as file:
            file.seek(tensor.start)
            return struct.unpack(f"<{tensor.element_count}f", file.read(tensor.size_bytes))


class _EndOfBuffer(Exception):
    """More of the file must be read."""


class _Cursor:
    """Reads values one after the other from the beginning of a file."""

    def __init__(self, path: Path, held: bytes) -> None:
        self.path, self.held, self.place = path, held, 0

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        start = self._step(struct.calcsize("<" + code) * count)
        return struct.unpack_from(f"<{count}{code}", self.held, start)

    def text(self, what: str) -> str:
        length = self.number("Q")
        start = self._step(length)
        try:
            return self.held[start : start + length].decode()
        except UnicodeDecodeError:
            raise damaged(self.path, f"{what} is no UTF-8 text") from None

    def _step(self, size_bytes: int) -> int:
        start = self.place
        # A count of 2^63 takes no memory here: what the file does not hold is not asked for.
        if size_bytes > len(self.held) - start:
            raise _EndOfBuffer
        self.place += size_bytes
        return start


def damaged(path: Path, problem: str, advice: str = COPY_AGAIN) -> BadCheckpoint:
    """The error for a GGUF file that breaks a rule of the format."""
    return BadCheckpoint(f"{path} is no intact GGUF file: {problem}; {advice}")


def read_gguf_header(path: Path) -> GgufFile:
    """Read and check the header of `path`.

    Raises:
        BadCheckpoint: the file is cut short, breaks a rule of the format, or is of a kind that is not read.
    """
    size_bytes = path.stat().st_size
    wanted = FIRST_READ_BYTES
    while True:
        with path.open("rb") as file:
            cursor = _Cursor(path, file.read(min(wanted, size_bytes)))
        try:
            return _parse(cursor, size_bytes)
        except _EndOfBuffer:
            if wanted >= size_bytes:
                raise BadCheckpoint(
                    f"{path} is cut short or damaged: its header announces more than the {size_bytes:,} bytes of the "
                    f"file; {COPY_AGAIN}"
                ) from None
            if wanted >= MAX_HEADER_BYTES:
                raise damaged(path, f"its header announces more than {MAX_HEADER_BYTES:,} bytes") from None
            wanted *= 2


def _parse(cursor: _Cursor, size_bytes: int) -> GgufFile:
    tensor_count, key_count = _counts(cursor)
    keys: dict[str, Any] = {}
    for _ in range(key_count):
        name = cursor.text("the name of a key")
        if name in keys:
            raise damaged(cursor.path, f"the key '{name}' stands twice in its header")
        keys[name] = _value(cursor, name, cursor.number("I"))
    entries = [_entry(cursor) for _ in range(tensor_count)]
    alignment = keys.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 8 or alignment % 8 or alignment > 2**20:
        raise damaged(cursor.path, f"'general.alignment' is {alignment!r}, no multiple of 8")
    header_bytes = _aligned(cursor.place, alignment)
    tensors: dict[str, GgufTensor] = {}
    for name, shape, type_number, offset in entries:
        if name in tensors:
            raise damaged(cursor.path, f"the tensor '{name}' stands twice in its header")
        if offset % alignment:
            raise damaged(cursor.path, f"'{name}' does not begin at a multiple of {alignment} bytes")
        tensors[name] = GgufTensor(
            name, type_number, shape, header_bytes + offset, _size_bytes(cursor.path, name, shape, type_number)
        )
    _check_places(cursor.path, tensors, size_bytes)
    refuse_holes(cursor.path)
    return GgufFile(cursor.path, size_bytes, header_bytes, keys, tensors)


def _counts(cursor: _Cursor) -> tuple[int, int]:
    path = cursor.path
    refuse_lfs_pointer(path, cursor.held[: len(LFS_POINTER)])
    if cursor.held[: len(MAGIC)] != MAGIC:
        raise damaged(path, "it does not begin with 'GGUF'", "copy it again, or give it the name of what it is")
    cursor.number("I")
    version = cursor.number("I")
    if version in BIG_ENDIAN:
        raise damaged(path, "it is written for big-endian machines", "convert it again without --bigendian")
    if version not in VERSIONS:
        raise damaged(path, f"it is of version {version}, and 2 and 3 are read", "convert it again with llama.cpp")
    tensor_count, key_count = cursor.numbers("Q", 2)
    if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
        raise damaged(path, f"its header announces {tensor_count:,} tensors and {key_count:,} keys")
    return tensor_count, key_count


def _value(cursor: _Cursor, name: str, kind: int) -> Any:
    if kind in NUMBERS:
        return cursor.number(NUMBERS[kind])
    if kind == STRING:
        return cursor.text(f"'{name}'")
    if kind != ARRAY:
        raise damaged(cursor.path, f"the key '{name}' is of the unknown type {kind}")
    inner, count = cursor.number("I"), cursor.number("Q")
    if count > MAX_ENTRIES:
        raise damaged(cursor.path, f"its header announces {count:,} entries in '{name}'")
    if inner in NUMBERS:
        return list(cursor.numbers(NUMBERS[inner], count))
    if inner != STRING:
        raise damaged(cursor.path, f"the key '{name}' is a list of the unknown type {inner}")
    return list(_texts(cursor, name, count))


def _texts(cursor: _Cursor, name: str, count: int) -> Iterator[str]:
    for place in range(count):
        yield cursor.text(f"entry {place} of '{name}'")


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text("the name of a tensor")
    dimensions = cursor.number("I")
    if not 0 < dimensions <= MAX_DIMENSIONS:
        raise damaged(cursor.path, f"'{name}' has {dimensions} dimensions")
    shape = cursor.numbers("Q", dimensions)
    type_number, offset = cursor.number("I"), cursor.number("Q")
    return name, tuple(reversed(shape)), type_number, offset


def _size_bytes(path: Path, name: str, shape: tuple[int, ...], type_number: int) -> int:
    if type_number not in TYPES:
        raise damaged(
            path,
            f"'{name}' is of the type {type_number}, which is not read here",
            "save it in F16, BF16, Q8_0 or one of the K types, or submit the checkpoint it was made from",
        )
    kind, block, block_bytes = TYPES[type_number]
    if not all(shape) or shape[-1] % block:
        size = " × ".join(map(str, shape))
        raise damaged(path, f"'{name}' ({size}) has rows that are no blocks of {block} weights, as {kind} wants")
    return math.prod(shape) // block * block_bytes


def _check_places(path: Path, tensors: dict[str, GgufTensor], size_bytes: int) -> None:
    end = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
        if tensor.start < end:
            raise damaged(path, f"'{tensor.name}' overlaps the tensor before it")
        end = tensor.start + tensor.size_bytes
        if end > size_bytes:
            raise BadCheckpoint(
                f"{path} is cut short: '{tensor.name}' ends at byte {end:,}, the file has {size_bytes:,}; {COPY_AGAIN}"
            )


def _aligned(place: int, alignment: int) -> int:
    return (place + alignment - 1) // alignment * alignment
