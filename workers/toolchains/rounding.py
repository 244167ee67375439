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
    """One matrix: bits a weight, and the number of weights that share a scale."""

    bits: int
    block_size: int


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
            by_place[place] = Rounding(attributes["bits"], attributes["block_size"])
    return Roundings(by_place)


def _place(name: str) -> tuple[int | None, str]:
    layer = LAYER_NUMBER.search(name)
    return (int(layer[1]) if layer else None, name.rpartition(".")[2])


def rounded(values: torch.Tensor, bits: int, block_size: int) -> torch.Tensor:
    """`values` on the nearest of 2**bits levels between the least and the greatest of each block of the last axis."""
    rows = torch.nn.functional.pad(values.flatten(0, -2), (0, -values.shape[-1] % block_size))
    for part in rows.split(ROWS_AT_ONCE):
        blocks = part.unflatten(-1, (-1, block_size))
        low, high = blocks.aminmax(dim=-1, keepdim=True)
        step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(torch.float32).tiny)
        blocks.sub_(low).div_(step).round_().mul_(step).add_(low)
    return rows[:, : values.shape[-1]].reshape(values.shape)
