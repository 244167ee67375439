"""What the graph of a model that was made elsewhere is made of: its files of weights, wherever it hides them, and how
coarsely its matrices are rounded.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from olivepress.errors import BadCheckpoint
from workers.toolchains.native_words import native_words

# A model in one file ends here, as every protobuf does.
GRAPH_BYTES_AT_MOST = 2**31
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "com.microsoft", "com.ms.internal.nhwc"})
BLOCK_ROUNDED = frozenset({"MatMulNBits", "GatherBlockQuantized"})
MIXED = "mixed"
PRECISION_OF = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.INT4: "int4",
    onnx.TensorProto.UINT4: "int4",
}
COARSEST_FIRST = ("int4", "int8")
# Part of all numbers of the matrices from which on a rounding gives the model its name.
SHARE_THAT_COUNTS = 0.1


@dataclass(frozen=True)
class ImportedGraph:
    """Of one ONNX file: `external_files` as the graph names them, and the `precision` of its matrices.

    The precision is int4 or int8, the coarsest rounding that a tenth of the matrices' numbers have, else fp16 or fp32
    where nearly all have it, else "mixed".
    """

    external_files: tuple[str, ...]
    precision: str


def read_imported(model_file: Path) -> ImportedGraph:
    """Read a graph without its weights.

    Raises:
        BadCheckpoint: it is no ONNX model, or it has operators that only native code of its own could run.
    """
    if model_file.stat().st_size >= GRAPH_BYTES_AT_MOST:
        raise BadCheckpoint(f"{model_file.name} has 2 GiB or more, and no ONNX file can; its weights belong beside it")
    try:
        model = onnx.load(str(model_file), load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise BadCheckpoint(f"{model_file.name} is no ONNX model: {native_words(error, model_file.parent)}") from error
    graphs = [model.graph, *_subgraphs(model.graph)]
    local = {function.domain for function in model.functions}
    foreign = {node.domain for graph in graphs for node in graph.node} - DOMAINS - local
    if foreign:
        raise BadCheckpoint(
            f"{model_file.name} has operators of {', '.join(sorted(foreign))}, which only a library of native code "
            "could run, and none is loaded; export the model with standard operators"
        )
    tensors = [tensor for graph in graphs for tensor in _tensors(graph)]
    tensors += [tensor for function in model.functions for tensor in _constants(function.node)]
    files = {
        entry.value
        for tensor in tensors
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return ImportedGraph(tuple(sorted(files)), _precision(graphs))


def _precision(graphs: list[Any]) -> str:
    numbers: Counter[str] = Counter()
    packed: set[str] = set()
    for node in (node for graph in graphs for node in graph.node):
        if node.op_type in BLOCK_ROUNDED:
            packed.update(node.input)
            facts = {attribute.name: attribute.i for attribute in node.attribute}
            if node.op_type == "MatMulNBits":
                numbers["int4" if facts.get("bits", 4) <= 4 else "int8"] += facts.get("K", 0) * facts.get("N", 0)
    for tensor in (tensor for graph in graphs for tensor in graph.initializer):
        if len(tensor.dims) > 1 and tensor.name not in packed:
            numbers[PRECISION_OF.get(tensor.data_type, MIXED)] += prod(tensor.dims)
    total = sum(numbers.values())
    for precision in COARSEST_FIRST:
        if total and numbers[precision] >= SHARE_THAT_COUNTS * total:
            return precision
    most = max(numbers, key=lambda precision: numbers[precision], default=MIXED)
    return most if total and numbers[most] > (1 - SHARE_THAT_COUNTS) * total else MIXED


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _constants(graph.node)


def _constants(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _subgraphs(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield inner
                yield from _subgraphs(inner)
