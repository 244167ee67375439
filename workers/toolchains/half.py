"""Weights kept in fp16 and computed with in fp32, for there is no fp16 arithmetic on the CPU.

The builder's own fp16 graph does not generate there: its attention meets buffers of another type. This is its fp32
graph with each matrix stored in fp16 and a Cast behind it, which onnxruntime folds when it opens the model: half of
the size on disk, the speed and memory of fp32, and no rounding but that of the weights.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxruntime_genai.models import builder

from workers.toolchains.notes import note
from workers.toolchains.replaced import replaced

# Norms and biases stay as they are: together they are less than a thousandth of a model.
SMALLEST_RANK = 2
LARGEST_FP16 = float(np.finfo(np.float16).max)
# In the names of the tables of cosines and sines that turn queries and keys.
ROTARY = "_cache"

_original_save = builder.Model.save_model


def storing_half() -> AbstractContextManager[None]:
    """Within this block the builder stores what it builds in fp32 with its matrices in fp16."""
    return replaced((builder.Model, "save_model", _save_in_half))


def _save_in_half(model: builder.Model, out_dir: str) -> None:
    graph = model.model.graph
    for value in list(graph.initializers.values()):
        if not value.uses():
            # The table of a kind of layers that this model has none of.
            del graph.initializers[value.name]
        elif value.dtype is ir.DataType.FLOAT and len(value.const_value.shape) >= SMALLEST_RANK:
            _store_narrow(graph, value, _as_steps if ROTARY in value.name else _as_half)
    _original_save(model, out_dir)


def _store_narrow(graph: ir.Graph, value: ir.Value, narrowing: "Callable[[ir.Value], _Narrow | None]") -> None:
    """Put what `narrowing` makes of an initializer in its place, with the nodes that widen it again."""
    name, wide = value.name, value.const_value
    narrow = narrowing(value)
    if narrow is None:
        return
    stored = ir.Value(
        name=name,
        type=ir.TensorType(narrow.dtype),
        shape=wide.shape,
        # Read again where it is written: two copies of every matrix at once would be the whole model in memory.
        const_value=ir.LazyTensor(narrow.tensor, dtype=narrow.dtype, shape=wide.shape, name=name),
    )
    cast = ir.Node("", "Cast", [stored], [ir.AttrInt64("to", ir.DataType.FLOAT.value)], name=f"{name}.widen")
    nodes = [cast]
    if narrow.step is not None:
        step = ir.Value(name=f"{name}.step", type=value.type, shape=ir.Shape([]))
        step.const_value = ir.tensor(np.float32(narrow.step), name=step.name)
        graph.register_initializer(step)
        cast.outputs[0].name = f"{name}.steps"
        nodes.append(ir.Node("", "Mul", [cast.outputs[0], step], name=f"{name}.scale"))
    widened = nodes[-1].outputs[0]
    widened.name, widened.type, widened.shape = f"{name}.fp32", value.type, wide.shape
    ir.convenience.replace_all_uses_with(value, widened)
    del graph.initializers[name]
    graph.register_initializer(stored)
    graph.extend(nodes)


@dataclass(frozen=True)
class _Narrow:
    """An initializer in 16 bits; `step` is what its numbers count, None where they are the numbers themselves."""

    dtype: ir.DataType
    tensor: Callable[[], ir.TensorProtocol]
    step: float | None = None


def _as_half(value: ir.Value) -> _Narrow | None:
    """A matrix in fp16; None where a number of it is too large for that."""
    wide = value.const_value
    if np.abs(wide.numpy()).max() > LARGEST_FP16:
        note(f"{value.name} stays in fp32: it holds numbers beyond {LARGEST_FP16:g}, the largest of fp16")
        return None
    return _Narrow(ir.DataType.FLOAT16, lambda: ir.tensor(wide.numpy().astype(np.float16), name=value.name))


def _as_steps(value: ir.Value) -> _Narrow:
    """A table of cosines or sines in even steps: of 16 bits, fp16 would give two thirds of them to numbers near 0."""
    wide = value.const_value
    step = float(np.abs(wide.numpy()).max()) / np.iinfo(np.int16).max or 1.0
    return _Narrow(
        ir.DataType.INT16, lambda: ir.tensor(np.rint(wide.numpy() / step).astype(np.int16), name=value.name), step
    )
