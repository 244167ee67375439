"""How a matrix is rounded to some bits, block by block, and the same rounding in torch."""

from dataclasses import dataclass

import torch

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Rounding:
    """One matrix: bits a weight, the number of weights that share a scale, and whether 0 stays 0."""

    bits: int
    block_size: int
    is_symmetric: bool


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
