"""What the graph in a model.onnx says about itself, read without its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from olivepress.errors import BadArtifact
from workers.toolchains.native_words import native_words


@dataclass(frozen=True)
class ExternalFile:
    """A file of weights beside the graph, and how many bytes of it the graph reads."""

    path: str
    needed_bytes: int


@dataclass(frozen=True)
class Graph:
    """Names and shapes of inputs and outputs (None: a dimension that varies), and the files of weights."""

    inputs: Mapping[str, tuple[int | None, ...]]
    outputs: Mapping[str, tuple[int | None, ...]]
    external_files: tuple[ExternalFile, ...]


def read_graph(path: Path) -> Graph:
    """The graph of an ONNX file.

    Raises:
        BadArtifact: the file is no ONNX model.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise BadArtifact(f"{path.name} is no ONNX model: {native_words(error, path.parent)}") from error
    needed: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            end = int(place.get("offset", 0)) + int(place.get("length", 0))
            needed[place["location"]] = max(needed.get(place["location"], 0), end)
    return Graph(
        inputs={value.name: _shape(value) for value in model.graph.input},
        outputs={value.name: _shape(value) for value in model.graph.output},
        external_files=tuple(ExternalFile(name, size) for name, size in sorted(needed.items())),
    )


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    dimensions = value.type.tensor_type.shape.dim
    return tuple(int(size.dim_value) if size.HasField("dim_value") else None for size in dimensions)
