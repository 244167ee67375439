"""What an ONNX graph and its weights tell beyond names and shapes: heads, reach, roundings, tensors that are blank."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from olivepress.errors import BadArtifact
from workers.toolchains.native_words import native_words

ATTENTION = frozenset({"GroupQueryAttention", "MultiHeadAttention", "Attention"})
# Weights rounded where they are used, once for a whole matrix or a column: coarser than in blocks.
WHOLE_MATRIX_ROUNDING = frozenset({"DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul"})
SMALLEST_TENSOR = 32
ELEMENTS_AT_ONCE = 2**22
ZERO_POINTS = ("zero_points", "_zp", "zero_point", "qzeros")


@dataclass(frozen=True)
class GraphFacts:
    """Of one ONNX file.

    `heads` and `key_value_heads` are those of its attention nodes, one set each, and `attention_scales` what they
    multiply scores by, where they say so; `reach` is the number of positions
    that its rotary tables have, or None; `yardstick` names how coarsely its matrices are rounded (see
    workers.toolchains.source_model).
    """

    heads: frozenset[int]
    key_value_heads: frozenset[int]
    reach: int | None
    yardstick: str
    attention_scales: frozenset[float] = frozenset()


@dataclass(frozen=True)
class BlankTensor:
    """A weight tensor that says nothing: all zeros, one code everywhere, or numbers that are not finite."""

    name: str
    shape: tuple[int, ...]
    what: str


def read_facts(model_file: Path) -> GraphFacts:
    """Read the graph; its weights are not touched.

    Raises:
        BadArtifact: the file is no ONNX model.
    """
    graph = load_graph(model_file).graph
    heads, key_value_heads, scales = set(), set(), set()
    for node in graph.node:
        if node.op_type in ATTENTION:
            numbers = {attribute.name: attribute.i for attribute in node.attribute}
            heads.add(int(numbers.get("num_heads", 0)))
            key_value_heads.add(int(numbers.get("kv_num_heads", 0)))
            scales |= {attribute.f for attribute in node.attribute if attribute.name == "scale" and attribute.f}
    reaches = [int(tensor.dims[0]) for tensor in graph.initializer if "cos_cache" in tensor.name and tensor.dims]
    return GraphFacts(
        frozenset(heads - {0}),
        frozenset(key_value_heads - {0}),
        max(reaches, default=None),
        _yardstick(graph),
        frozenset(scales),
    )


def blank_tensors(model_file: Path) -> Iterator[BlankTensor]:
    """The tensors of weights that are blank; reads all of them once, a piece at a time.

    Raises:
        BadArtifact: the file is no ONNX model, or its weights end too early.
    """
    for tensor in load_graph(model_file).graph.initializer:
        count = int(np.prod(tensor.dims, dtype=np.int64))
        if count < SMALLEST_TENSOR:
            continue
        values = _values(tensor, model_file.parent, count)
        if values is not None and (what := _blankness(tensor.name, values)):
            yield BlankTensor(tensor.name, tuple(int(size) for size in tensor.dims), what)


def load_graph(model_file: Path) -> onnx.ModelProto:
    """The graph of an ONNX file, without its weights.

    Raises:
        BadArtifact: the file is no ONNX model.
    """
    try:
        return onnx.load(str(model_file), load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise BadArtifact(f"{model_file.name} is no ONNX model: {native_words(error, model_file.parent)}") from error


def _yardstick(graph: onnx.GraphProto) -> str:
    """The coarsest rounding of the graph's matrices, in the names of the source's yardsticks."""
    bits_and_blocks = set()
    for node in graph.node:
        if node.op_type in WHOLE_MATRIX_ROUNDING:
            bits_and_blocks.add((4, 128))
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            numbers = {attribute.name: attribute.i for attribute in node.attribute}
            bits_and_blocks.add((int(numbers.get("bits", 4)), int(numbers.get("block_size", 32))))
    four_bits = [block for bits, block in bits_and_blocks if bits <= 4]
    if not four_bits:
        return "int8"
    return "int4-128" if max(four_bits) > 32 else "int4-32"


def _values(tensor: onnx.TensorProto, directory: Path, count: int) -> Any:
    """The tensor's elements, mapped where they lie in a file of their own; None for kinds that hold no numbers."""
    try:
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, ValueError, TypeError):
        return None
    if kind.kind not in "fiu" or kind.itemsize * count == 0:
        return None
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return onnx.numpy_helper.to_array(tensor).reshape(-1)
    place = {entry.key: entry.value for entry in tensor.external_data}
    try:
        return np.memmap(
            directory / place["location"], dtype=kind, mode="r", offset=int(place.get("offset", 0)), shape=(count,)
        )
    except (OSError, ValueError, KeyError) as error:
        raise BadArtifact(f"the weights of {tensor.name} cannot be read: {native_words(error, directory)}") from error


def _blankness(name: str, values: Any) -> str | None:
    is_number = values.dtype.kind == "f"
    first = values[0]
    is_constant = True
    for start in range(0, len(values), ELEMENTS_AT_ONCE):
        part = values[start : start + ELEMENTS_AT_ONCE]
        if is_number and not np.isfinite(part).all():
            return "numbers that are not finite"
        is_constant = is_constant and bool((part == first).all())
    if not is_constant:
        return None
    # Symmetric signed weights have zero points that are all 0.
    if first == 0 and not (values.dtype.kind == "i" and name.endswith(ZERO_POINTS)):
        return "nothing but zeros"
    # One number everywhere is what a norm starts with; one code everywhere is no matrix. Zero points of symmetric
    # weights are all the middle.
    is_codes = not is_number and values.dtype.itemsize == 1 and not name.endswith(ZERO_POINTS)
    return f"the code {int(first)} everywhere" if is_codes else None
