"""Carries the integers of a quantized checkpoint through the model builder, which reads it in floating point.

onnxruntime-genai 0.18's own reader of quantized checkpoints knows the tensor names of few architectures, takes zero
points of joined matrices apart at the wrong rows (Phi-3), and rounds what it adds to norms (Gemma). So the builder is
given the checkpoint that the integers stand for, and rounding it anew would find other integers. Instead each row of a
matrix in its graph is recognized by its numbers, whatever the builder joined or turned, and gets its own integers back.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxruntime_genai.models import builder

from olivepress.recipes.recipe import BLOCK_SIZES
from workers.toolchains import olive_format
from workers.toolchains.olive_format import PackedMatrix
from workers.toolchains.replaced import replaced
from workers.toolchains.rounding import Rounding

log = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]
DOMAIN = "com.microsoft"

_original_to_nbits = builder.Model.to_nbits


@dataclass(frozen=True)
class _Row:
    matrix: PackedMatrix
    number: int


def keeping(checkpoint: Path | None) -> AbstractContextManager[None]:
    """Within this block the builder writes the matrices of a quantized checkpoint with their own integers."""
    if checkpoint is None or (quantization := olive_format.read_olive_quantization(checkpoint)) is None:
        return nullcontext()
    rows = _rows_by_print(olive_format.packed_matrices(checkpoint, quantization))
    return replaced((builder.Model, "to_nbits", lambda model: _to_nbits(model, rows)))


def _to_nbits(model: builder.Model, rows: dict[Rounding, dict[bytes, _Row]]) -> ir.Model:
    graph, kept, excluded = model.model.graph, 0, set(model.quant_attrs["nodes_to_exclude"])
    for node in list(graph):
        if node.op_type != "MatMul" or node.name in excluded or node.inputs[1].const_value is None:
            continue
        found = _recognized(node.inputs[1].const_value.numpy(), rows)
        if found:
            _put_integers(graph, node, found, model.quant_attrs["accuracy_level"])
            kept += 1
    log.info("%d matrices keep the integers that the passes before gave them", kept)
    return _original_to_nbits(model)


def _rows_by_print(matrices: Iterator[PackedMatrix]) -> dict[Rounding, dict[bytes, _Row]]:
    """The rows of all matrices by the print of their numbers, those of one rounding together."""
    found: dict[Rounding, dict[bytes, _Row]] = {}
    for matrix in matrices:
        if matrix.rounding.block_size in BLOCK_SIZES:
            prints = _prints(matrix.widened().numpy())
            rows = found.setdefault(matrix.rounding, {})
            rows |= {each: _Row(matrix, number) for number, each in enumerate(prints)}
    return found


def _recognized(weight: npt.NDArray[np.float32], rows: dict[Rounding, dict[bytes, _Row]]) -> list[_Row] | None:
    """For each output of a matrix (inputs x outputs) its row; None unless all are known and rounded alike."""
    prints = _prints(weight.T)
    for known in rows.values():
        found = [row for each in prints if (row := known.get(each))]
        if len(found) == len(prints):
            return found
    return None


def _prints(rows: npt.NDArray[np.float32]) -> list[bytes]:
    return [hashlib.blake2b(np.ascontiguousarray(row, dtype=np.float32), digest_size=16).digest() for row in rows]


def _put_integers(graph: ir.Graph, node: ir.Node, rows: Sequence[_Row], accuracy_level: int) -> None:
    """Put a MatMulNBits node in the place of a MatMul.

    Source: onnxruntime, docs/ContribOperators.md, com.microsoft.MatMulNBits.
    """
    weight, rounding = node.inputs[1], rows[0].matrix.rounding
    columns, outputs = (int(size) for size in weight.const_value.shape)
    blocks = columns // rounding.block_size
    base = f"{weight.name}_Q{rounding.bits}"
    levels = _gathered(rows, lambda matrix: matrix.levels.numpy()).reshape(outputs, blocks, -1)
    scales = _gathered(rows, lambda matrix: matrix.scales.float().numpy())
    parts = {base: levels, f"{base}.scales": scales.reshape(-1)}
    if not rounding.is_symmetric:
        parts[f"{base}.zeros"] = _gathered(rows, _zeros).reshape(-1)
    inputs: list[ir.Value | None] = [node.inputs[0]]
    for name, numbers in parts.items():
        tensor = ir.tensor(numbers, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        graph.register_initializer(value)
        inputs.append(value)
    attributes = {"K": columns, "N": outputs, "bits": rounding.bits, "block_size": rounding.block_size}
    attributes["accuracy_level"] = accuracy_level
    made = ir.Node(
        DOMAIN,
        "MatMulNBits",
        inputs,
        [ir.AttrInt64(name, number) for name, number in attributes.items()],
        name=f"{node.name}_Q{rounding.bits}",
    )
    old, new = node.outputs[0], made.outputs[0]
    # Before the old value is let go: an output of the graph keeps its name.
    name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [made], [old], [new])
    new.name = name
    if not weight.uses():
        del graph.initializers[weight.name]


def _zeros(matrix: PackedMatrix) -> Bytes:
    assert matrix.zeros is not None, "an asymmetric matrix has zero points"
    return matrix.zeros.numpy()


def _gathered(rows: Sequence[_Row], read: Callable[[PackedMatrix], npt.NDArray]) -> npt.NDArray:
    """Rows of several matrices, one below the other; each matrix is read once for all that follow each other."""
    parts, start = [], 0
    for place in range(1, len(rows) + 1):
        if place == len(rows) or rows[place].matrix is not rows[start].matrix:
            numbers = [row.number for row in rows[start:place]]
            parts.append(read(rows[start].matrix)[numbers])
            start = place
    return np.ascontiguousarray(np.concatenate(parts))
