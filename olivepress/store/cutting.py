"""Where files are cut into chunks: external data at its tensors, so that fine-tunes of one base share chunks."""

import logging
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

from olivepress.store.manifest import CHUNK_LIMIT_BYTES

log = logging.getLogger(__name__)

# Below this, a chunk costs more (a file, an entry in the manifest) than its sharing saves.
SMALL_TENSOR_BYTES = 16 * 1024
_DATA_SUFFIX = ".data"
# As deep as protobuf's own readers go.
_DEPTH_LIMIT = 100


@dataclass(frozen=True)
class TensorSpan:
    """Where a tensor lies in an external-data file, in bytes."""

    offset: int
    length: int


class UnreadableModel(Exception):
    """The bytes are not an ONNX model that this module can walk; its data is cut without it."""


def piece_sizes(file: Path, size_bytes: int) -> list[int]:
    """Sizes in bytes of the pieces to store `file` in, in order; none for an empty file.

    `X.onnx.data` is cut by the tensors that the `X.onnx` beside it places there, anything else in fixed pieces.
    """
    return cut(size_bytes, _tensors_of(file, size_bytes))


def cut(size_bytes: int, tensors: list[TensorSpan]) -> list[int]:
    """Sizes of the pieces of a file of `size_bytes` that holds `tensors`.

    Cuts depend on the layout only, never on the content: variants of one base with the same layout are cut alike. A
    tensor of at least SMALL_TENSOR_BYTES begins a section. Smaller ones join the section before them (scales
    change with their weight) until together they reach SMALL_TENSOR_BYTES; the next tensor then begins a
    section. So where layouts differ, the cuts agree again at the next large tensor. Padding belongs to the
    tensor before it. A section is cut every 16 MiB from its start.
    """
    starts, small_bytes = [0], 0
    # Of tensors at one offset (shared, or empty) the longest counts: it comes last and stays in the dict.
    longest_at = dict(sorted((span.offset, span.length) for span in tensors))
    for offset, length in longest_at.items():
        if length >= SMALL_TENSOR_BYTES or small_bytes >= SMALL_TENSOR_BYTES:
            starts.append(offset)
            small_bytes = 0
        if length < SMALL_TENSOR_BYTES:
            small_bytes += length
    ends = [*starts[1:], size_bytes]
    return [size for start, end in zip(starts, ends, strict=True) for size in _fixed(end - start)]


def external_tensors(model: Path, location: str) -> list[TensorSpan]:
    """The tensors that an ONNX file places in the external-data file `location`, in the order of the graph.

    Reads the protobuf wire format itself: the library loads neither onnx nor protobuf. Inline weights are skipped,
    not read. A tensor without a stated length has length 0.

    Raises: UnreadableModel, OSError.
    """
    with model.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file cannot be mapped
            raise UnreadableModel("the file is empty") from error
        with data:
            found = _tensors_in(data, _Field(0, 0, len(data)), _Kind.MODEL, 0)
            return [span for place, span in found if place.removeprefix("./") == location]


def _tensors_of(file: Path, size_bytes: int) -> list[TensorSpan]:
    model = file.with_suffix("")
    if file.suffix != _DATA_SUFFIX or model.suffix != ".onnx" or not model.is_file():
        return []
    try:
        tensors = external_tensors(model, file.name)
        if any(span.offset + span.length > size_bytes for span in tensors):
            raise UnreadableModel("a tensor reaches beyond the end of the data")
    except UnreadableModel as reason:
        log.warning("external data of %s is cut in fixed pieces: %s", model.name, reason)
        return []
    return tensors


def _fixed(size_bytes: int) -> list[int]:
    whole, rest = divmod(size_bytes, CHUNK_LIMIT_BYTES)
    return [CHUNK_LIMIT_BYTES] * whole + ([rest] if rest else [])


# The protobuf wire format (https://protobuf.dev/programming-guides/encoding) of the part of onnx.proto that leads to
# tensors. A field is a varint key, number << 3 | wire type, and its value.


class _Kind(Enum):
    MODEL = auto()
    TRAINING = auto()
    FUNCTION = auto()
    GRAPH = auto()
    NODE = auto()
    ATTRIBUTE = auto()
    SPARSE_TENSOR = auto()
    TENSOR = auto()


_WAY_TO_TENSORS = {
    _Kind.MODEL: {7: _Kind.GRAPH, 20: _Kind.TRAINING, 25: _Kind.FUNCTION},
    _Kind.TRAINING: {1: _Kind.GRAPH, 2: _Kind.GRAPH},
    _Kind.FUNCTION: {7: _Kind.NODE, 11: _Kind.ATTRIBUTE},
    _Kind.GRAPH: {1: _Kind.NODE, 5: _Kind.TENSOR, 15: _Kind.SPARSE_TENSOR},
    _Kind.NODE: {5: _Kind.ATTRIBUTE},
    _Kind.ATTRIBUTE: {
        5: _Kind.TENSOR,
        6: _Kind.GRAPH,
        10: _Kind.TENSOR,
        11: _Kind.GRAPH,
        22: _Kind.SPARSE_TENSOR,
        23: _Kind.SPARSE_TENSOR,
    },
    _Kind.SPARSE_TENSOR: {1: _Kind.TENSOR, 2: _Kind.TENSOR},
}
_TENSOR_EXTERNAL_DATA = 13
_TENSOR_DATA_LOCATION = 14
_EXTERNAL = 1
_ENTRY_KEY = 1
_ENTRY_VALUE = 2


class _Field(NamedTuple):
    """A field of a message: its payload is data[start:end]; of a varint, `start` is the value and `end` is -1."""

    number: int
    start: int
    end: int


def _tensors_in(data: mmap.mmap, message: _Field, kind: _Kind, depth: int) -> Iterator[tuple[str, TensorSpan]]:
    if depth > _DEPTH_LIMIT:
        raise UnreadableModel("its graphs are nested too deep")
    if kind is _Kind.TENSOR:
        yield from _external_data(data, message)
        return
    way = _WAY_TO_TENSORS[kind]
    for field in _fields(data, message):
        if field.number in way:
            yield from _tensors_in(data, field, way[field.number], depth + 1)


def _external_data(data: mmap.mmap, tensor: _Field) -> Iterator[tuple[str, TensorSpan]]:
    """The place of one tensor, if its data is external."""
    entries: dict[bytes, bytes] = {}
    location = 0
    for field in _fields(data, tensor):
        if field.number == _TENSOR_DATA_LOCATION:
            location = field.start
        elif field.number == _TENSOR_EXTERNAL_DATA:
            entry = {part.number: data[part.start : part.end] for part in _fields(data, field) if part.end >= 0}
            entries[entry.get(_ENTRY_KEY, b"")] = entry.get(_ENTRY_VALUE, b"")
    if location != _EXTERNAL:
        return
    try:
        span = TensorSpan(_natural(entries.get(b"offset", b"0")), _natural(entries.get(b"length", b"0")))
        yield entries[b"location"].decode(), span
    except (ValueError, KeyError) as error:
        raise UnreadableModel("a tensor's external data has no readable place") from error


def _natural(digits: bytes) -> int:
    if not digits.isdigit():
        raise ValueError
    return int(digits)


def _fields(data: mmap.mmap, message: _Field) -> Iterator[_Field]:
    position, end = message.start, message.end
    if end < 0:
        raise UnreadableModel("a message is expected where a number is")
    while position < end:
        key, position = _varint(data, position, end)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(data, position, end)
            yield _Field(number, value, -1)
            continue
        if wire_type == 2:
            size, position = _varint(data, position, end)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise UnreadableModel(f"wire type {wire_type} has no place in an ONNX file")
        if size > end - position:
            raise UnreadableModel("a field reaches beyond the end of its message")
        if wire_type == 2:
            yield _Field(number, position, position + size)
        position += size


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """The number at `position` and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise UnreadableModel("a number is cut off or too long")
