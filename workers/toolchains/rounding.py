"""How a built model rounds its matrices, read from its graph, and the same rounding in torch."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

ROWS_AT_ONCE = 4096
LAYER_NUMBER = re.compile(r"layers\.(\d+)\.")
# The builder's names of matrices that torch calls otherwise, or holds in several parts.
BUILDER_NAMES = {
    "q_proj": ("qkv_proj",),
    "k_proj": ("qkv_proj",),
    "v_proj": ("qkv_proj",),
    "gate_up_proj": ("gate_proj",),
    "dense": ("o_proj",),
    "out_proj": ("o_proj",),
}


@dataclass(frozen=True)
class Rounding:
    """One matrix: bits a weight, the number of weights that share a scale, and whether 0 stays 0."""

    bits: int
    block_size: int
    is_symmetric: bool


@dataclass(frozen=True)
class Roundings:
    """The quantized matrices of a model, by place: (number of the layer, or None; the matrix's own name)."""

    by_place: dict[tuple[int | None, str], Rounding]

    def of(self, module_name: str) -> Rounding | None:
        """How the matrix of a torch module is rounded; for one that cannot be found, as most are; None for fp32."""
        if not self.by_place:
            return None
        layer, name = _place(module_name)
        for builder_name in (name, *BUILDER_NAMES.get(name, ())):
            if rounding := self.by_place.get((layer, builder_name)):
                return rounding
        return Counter(self.by_place.values()).most_common(1)[0][0]


def roundings_of(model_file: Path) -> Roundings:
    """Read the quantized matrices of an ONNX file; its weights are not read."""
    by_place = {}
    for node in onnx.load(model_file, load_external_data=False).graph.node:
        if node.op_type == "MatMulNBits":
            # "/model/layers.0/attn/qkv_proj/MatMul_Q4"
            attributes = {attribute.name: attribute.i for attribute in node.attribute}
            place = _place(node.name.rpartition("/")[0].strip("/").replace("/", "."))
            has_zero_points = len(node.input) > 3 and bool(node.input[3])
            by_place[place] = Rounding(attributes["bits"], attributes["block_size"], not has_zero_points)
    return Roundings(by_place)


def _place(name: str) -> tuple[int | None, str]:
    layer = LAYER_NUMBER.search(name)
    return (int(layer[1]) if layer else None, name.rpartition(".")[2])


def rounded(values: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """`values` on the nearest of the 2**bits levels that onnxruntime gives to each block of the last axis.

    The levels lie evenly between the least and the greatest value, or, symmetric, from the value that is farthest
    from 0 over 0 to one step short of its opposite.
    """
    size, levels = rounding.block_size, 2**rounding.bits
    rows = torch.nn.functional.pad(values.flatten(0, -2), (0, -values.shape[-1] % size))
    for part in rows.split(ROWS_AT_ONCE):
        blocks = part.unflatten(-1, (-1, size))
        low, high = blocks.aminmax(dim=-1, keepdim=True)
        if rounding.is_symmetric:
            step = torch.where(high > -low, high, low) / (-levels // 2)
            step[step == 0] = 1.0
            blocks.div_(step).round_().clamp_(-levels // 2, levels // 2 - 1).mul_(step)
        else:
            step = ((high - low) / (levels - 1)).clamp_min(torch.finfo(torch.float32).tiny)
            blocks.sub_(low).div_(step).round_().mul_(step).add_(low)
    return rows[:, : values.shape[-1]].reshape(values.shape)
