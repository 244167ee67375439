"""The weights that a built model holds, read back from its graph and widened to fp32, by the names torch gives them.

The builder's names are regular: `model.layers.3.attn.qkv_proj.MatMul.weight` for a matrix in floating point, a
MatMulNBits node `/model/layers.3/attn/qkv_proj/MatMul_Q4` for a quantized one. It may join matrices that torch keeps
apart, and take apart what torch joins.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch

from workers.toolchains.rounding import Rounding

Place = tuple[int | None, str]
"""Number of the layer, None outside of the layers; the matrix's own name."""
Rows = slice
"""With a start and a stop."""
Numbers = npt.NDArray[np.float32]

LAYER_NUMBER = re.compile(r"layers\.(\d+)\.")
FLOATS = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}
RAW = FLOATS | {onnx.TensorProto.UINT8: np.uint8, onnx.TensorProto.INT8: np.int8, onnx.TensorProto.INT16: np.int16}
INTEGER_SUFFIX = "_quantized"
MATRIX_SUFFIXES = (".MatMul.weight", ".weight")
# What torch calls a matrix, and what the builder does.
BUILDER_NAMES = {"dense": "o_proj", "out_proj": "o_proj", "w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
HEAD: Place = (None, "lm_head")
EMBEDDING: Place = (None, "embed_tokens")


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix as the built model holds it; one row for each output.

    `read` gives rows in fp32; `step`, of a quantized one, the distance between two levels for each row and block.
    """

    rows: int
    read: Callable[[Rows], torch.Tensor]
    step: Callable[[Rows], torch.Tensor] | None = None
    rounding: Rounding | None = None
    is_half: bool = False

    def part(self, start: int, rows: int) -> "StoredMatrix":
        """Some of the rows, as a matrix of their own."""

        def moved(wanted: Rows) -> Rows:
            return slice(wanted.start + start, wanted.stop + start)

        step = self.step
        return replace(
            self,
            rows=rows,
            read=lambda wanted: self.read(moved(wanted)),
            step=step and (lambda wanted: step(moved(wanted))),
        )


class StoredWeights:
    """Matrices and vectors of a model.onnx; nothing is read before it is asked for."""

    def __init__(self, model_file: Path) -> None:
        graph = onnx.load(model_file, load_external_data=False).graph
        self._directory = model_file.parent
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._used = {name for node in graph.node for name in node.input}
        floating, quantized = self._floating(), self._quantized(graph) | self._integers(graph)
        self._matrices = floating | quantized
        if HEAD in floating and HEAD in quantized:
            # Tied in the source and before a pass that quantized the head alone: the floating one is the table.
            self._matrices.setdefault(EMBEDDING, floating[HEAD])

    @property
    def rounding(self) -> Rounding | None:
        """How most of the matrices are rounded; None for a model in floating point."""
        found = [matrix.rounding for matrix in self._matrices.values() if matrix.rounding]
        return max(set(found), key=found.count) if found else None

    def table(self, name: str) -> npt.NDArray[np.generic]:
        """A table of the graph as it lies in the file; `name` is one of `table_names`."""
        return self._read(self._initializers[name])

    def table_names(self, kind: str) -> list[str]:
        """Names of the two-dimensional tables that some node reads, with `kind` in them, such as cos_cache."""
        tables = (name for name, tensor in self._initializers.items() if kind in name and len(tensor.dims) == 2)
        return [name for name in tables if name in self._used]

    def number(self, name: str) -> float | None:
        """A single number of the graph; None where it has none of this name."""
        tensor = self._initializers.get(name)
        return None if tensor is None else float(self._read(tensor))

    def placed(self, rows: Mapping[str, int], *, is_tied: bool) -> dict[str, StoredMatrix]:
        """For each of torch's matrices (name of the module to its number of rows) the stored one, where it is found.

        A matrix of another number of rows is not taken for it. Where the source is tied, one matrix may be both table
        and head.
        """
        places = {name: _place(name) for name in rows}
        by_place = {places[name]: count for name, count in rows.items()}
        found = {name: self._find(place, by_place) for name, place in places.items()}
        if is_tied:
            found |= {
                name: self._matrices.get(HEAD)
                for name, place in places.items()
                if place == EMBEDDING and not found[name]
            }
        return {name: matrix for name, matrix in found.items() if matrix and matrix.rows == rows[name]}

    def vectors(self) -> dict[int | None, list[Numbers]]:
        """Norms and biases, by the number of their layer."""
        found: dict[int | None, list[Numbers]] = defaultdict(list)
        for name, tensor in self._initializers.items():
            if len(tensor.dims) == 1 and tensor.data_type in FLOATS:
                found[_place(name)[0]].append(self._read(tensor).astype(np.float32))
        return found

    def _find(self, place: Place, rows: Mapping[Place, int]) -> StoredMatrix | None:
        layer, name = place
        for candidate in (name, BUILDER_NAMES.get(name, name)):
            if matrix := self._matrices.get((layer, candidate)):
                return matrix
        if parts := JOINED.get(name):
            matrices = [matrix for part in parts if (matrix := self._matrices.get((layer, part)))]
            return _joined(matrices) if len(matrices) == len(parts) else None
        for joined, parts in JOINED.items():
            whole = self._matrices.get((layer, joined))
            if whole and name in parts:
                before = [rows.get((layer, part), 0) for part in parts[: parts.index(name)]]
                return whole.part(sum(before), rows[place])
        return None

    def _floating(self) -> dict[Place, StoredMatrix]:
        matrices = {}
        for name, tensor in self._initializers.items():
            suffix = next((suffix for suffix in MATRIX_SUFFIXES if name.endswith(suffix)), None)
            if suffix is None or len(tensor.dims) < 2 or tensor.data_type not in FLOATS:
                continue
            is_transposed = suffix == MATRIX_SUFFIXES[0]
            matrices[_place(name.removesuffix(suffix))] = StoredMatrix(
                tensor.dims[-1 if is_transposed else 0],
                partial(self._float_rows, tensor, is_transposed),
                is_half=tensor.data_type == onnx.TensorProto.FLOAT16,
            )
        return matrices

    def _float_rows(self, tensor: onnx.TensorProto, is_transposed: bool, wanted: Rows) -> torch.Tensor:
        numbers = self._read(tensor)
        part = numbers[:, wanted].T if is_transposed else numbers[wanted]
        return torch.from_numpy(np.array(part, dtype=np.float32, order="C"))

    def _quantized(self, graph: onnx.GraphProto) -> dict[Place, StoredMatrix]:
        matrices = {}
        for node in graph.node:
            if node.op_type == "MatMulNBits" and all(
                name in self._initializers for name in filter(None, node.input[1:4])
            ):
                # "/model/layers.0/attn/qkv_proj/MatMul_Q4"
                place = _place(node.name.rpartition("/")[0].strip("/").replace("/", "."))
                matrices[place] = self._blocks(node)
        return matrices

    def _blocks(self, node: onnx.NodeProto) -> StoredMatrix:
        """One MatMulNBits node: its rows are (level - zero point) * scale, block by block.

        Source: onnxruntime, docs/ContribOperators.md, com.microsoft.MatMulNBits.
        """
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        columns, rows, bits, size = (attributes[name] for name in ("K", "N", "bits", "block_size"))
        blocks = -(-columns // size)
        packed, scales, *rest = (self._initializers[name] for name in node.input[1:4] if name)

        def step(wanted: Rows) -> torch.Tensor:
            return torch.from_numpy(self._read(scales).reshape(rows, blocks)[wanted].astype(np.float32))

        def read(wanted: Rows) -> torch.Tensor:
            levels = _unpacked(self._read(packed).reshape(rows, blocks, -1)[wanted], bits)
            zero: torch.Tensor | float = 2.0 ** (bits - 1)
            if rest:
                stored = self._read(rest[0]).reshape(rows, -1)[wanted]
                is_packed = rest[0].data_type == onnx.TensorProto.UINT8
                zero = (_unpacked(stored, bits)[:, :blocks] if is_packed else torch.from_numpy(stored)).float()
                zero = zero.unsqueeze(-1)
            return levels.float().sub_(zero).mul_(step(wanted).unsqueeze(-1)).flatten(1)[:, :columns]

        return StoredMatrix(rows, read, step, Rounding(bits, size, is_symmetric=not rest))

    def _integers(self, graph: onnx.GraphProto) -> dict[Place, StoredMatrix]:
        """What onnxruntime's dynamic quantization leaves: matrices in 8 bits with one scale, or one for each row."""
        matrices = {}
        for node in graph.node:
            # "/model/layers.0/attn/qkv_proj/MatMul_quant", "/model/embed_tokens/Gather"
            inputs = {"MatMulInteger": 1, "Gather": 0}
            name = node.input[inputs[node.op_type]] if node.op_type in inputs else ""
            if name.endswith(INTEGER_SUFFIX) and name in self._initializers:
                place = _place(node.name.rpartition("/")[0].strip("/").replace("/", "."))
                matrices[place] = self._integer(name, is_transposed=node.op_type == "MatMulInteger")
        return matrices

    def _integer(self, name: str, *, is_transposed: bool) -> StoredMatrix:
        base = name.removesuffix(INTEGER_SUFFIX)
        levels, scales, zeros = (
            self._initializers[base + suffix] for suffix in (INTEGER_SUFFIX, "_scale", "_zero_point")
        )
        rows, columns = levels.dims[::-1] if is_transposed else levels.dims

        def for_each_row(tensor: onnx.TensorProto, wanted: Rows) -> torch.Tensor:
            numbers = np.broadcast_to(self._read(tensor).reshape(-1).astype(np.float32), (rows,))[wanted]
            return torch.from_numpy(np.array(numbers)).unsqueeze(-1)

        def read(wanted: Rows) -> torch.Tensor:
            stored = self._read(levels)
            part = stored[:, wanted].T if is_transposed else stored[wanted]
            numbers = torch.from_numpy(np.array(part, dtype=np.float32, order="C"))
            return numbers.sub_(for_each_row(zeros, wanted)).mul_(for_each_row(scales, wanted))

        rounding = Rounding(bits=8, block_size=columns, is_symmetric=False)
        return StoredMatrix(rows, read, lambda wanted: for_each_row(scales, wanted), rounding)

    def _read(self, tensor: onnx.TensorProto) -> npt.NDArray[np.generic]:
        """The tensor's numbers as they lie in the file."""
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return onnx.numpy_helper.to_array(tensor)
        where = {entry.key: entry.value for entry in tensor.external_data}
        dtype, shape = RAW[tensor.data_type], tuple(tensor.dims)
        place = self._directory / where["location"]
        return np.memmap(place, dtype, "r", offset=int(where.get("offset", 0)), shape=shape)


def layer_of(name: str) -> int | None:
    """The number of the layer in a name; None for what lies outside of the layers."""
    layer = LAYER_NUMBER.search(name)
    return int(layer[1]) if layer else None


def _place(name: str) -> Place:
    return layer_of(name), name.rpartition(".")[2]


def _unpacked(packed: npt.NDArray[np.generic], bits: int) -> torch.Tensor:
    """Bytes to levels along the last axis; the first of two levels lies in the low half of a byte."""
    levels = torch.from_numpy(np.array(packed))
    if bits == 8:
        return levels
    mask = 2**bits - 1
    return torch.stack([(levels >> shift) & mask for shift in range(0, 8, bits)], dim=-1).flatten(-2)


def _joined(parts: list[StoredMatrix]) -> StoredMatrix:
    starts = list(accumulate((part.rows for part in parts), initial=0))

    def each(wanted: Rows, read: Callable[[StoredMatrix], Callable[[Rows], torch.Tensor]]) -> torch.Tensor:
        cuts = [
            (part, slice(max(wanted.start - start, 0), min(wanted.stop - start, part.rows)))
            for part, start in zip(parts, starts, strict=False)
        ]
        return torch.cat([read(part)(cut) for part, cut in cuts if cut.start < cut.stop])

    return replace(
        parts[0],
        rows=starts[-1],
        read=lambda wanted: each(wanted, lambda part: part.read),
        step=parts[0].step and (lambda wanted: each(wanted, lambda part: part.step)),
    )
