"""Takes the print of a checkpoint in torch, and holds the weights that a built model stores against it.

A matrix passes where its squared distance from the source's, as the prints estimate it, is within what rounding
explains (the bound that conversion keeps row by row), and where its length is the source's: rounding moves numbers
up and down alike, and a wrong scale moves all of them one way.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from workers.measures.weight_print import SIGNS, MatrixPrint, WeightPrint, group_starts, random_signs
from workers.toolchains.rope_tables import rope_faults
from workers.toolchains.rotary import ropes_of
from workers.toolchains.side_by_side import STEPS, vector_faults, vectors_of
from workers.toolchains.stored_weights import StoredMatrix, StoredWeights

NUMBERS_AT_ONCE = 2**24
# By how much the sum of squares may differ, as a share: coarse rounding cuts off the largest number of a block.
# Measured over all recipes and architectures: 0.02 at most in 4 bits, 0.0004 in 8 and more.
LENGTH_SHARE, LENGTH_SHARE_IN_FEW_BITS = 0.02, 0.1
FEW_BITS = 4
# The distance of a single group is an estimate from SIGNS sums: of sound matrices, whose rounding makes a third of what
# STEPS allows, one group in 10^15 is estimated at so many times that. Measured: 0.9 at most in 14,784 groups.
GROUP_SLACK = 3.0
# What lies in floating point may have gone through bf16: the copy of a merged adapter does, for a quantized recipe.
FLOAT_SHARE = 4e-3

Rows = Callable[[slice], torch.Tensor]


def print_of(model: torch.nn.Module) -> WeightPrint:
    """The print of a checkpoint that is open in torch."""
    matrices = {
        name: _print(name, *module.weight.shape, lambda wanted, weight=module.weight: weight[wanted].detach().float())
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding)
    }
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return WeightPrint(is_tied, matrices, vectors_of(model), tuple(ropes_of(model)))


def faults(source: WeightPrint, model_file: Path) -> tuple[list[str], list[str]]:
    """What of a built model's weights is not its source's, one sentence each; and names that are not found in it."""
    stored = StoredWeights(model_file)
    placed = stored.placed({name: each.rows for name, each in source.matrices.items()}, is_tied=source.is_tied)
    found = [fault for name, matrix in placed.items() if (fault := _matrix_fault(name, source.matrices[name], matrix))]
    unplaced = sorted(source.matrices.keys() - placed.keys())
    # Where no matrix has a name that is known, a pass has rewritten the graph, and the vectors' names with it.
    if placed:
        found += vector_faults(source.vectors, stored)
    return found + rope_faults(source.ropes, stored), unplaced


def _matrix_fault(name: str, source: MatrixPrint, stored: StoredMatrix) -> str | None:
    columns = stored.read(slice(0, 1)).shape[-1]
    if columns != source.columns:
        return f"'{name}' has {columns} columns and its source {source.columns}"
    mine = _print(name, source.rows, source.columns, stored.read)
    few_bits = stored.rounding is not None and stored.rounding.bits <= FEW_BITS
    share = LENGTH_SHARE_IN_FEW_BITS if few_bits else LENGTH_SHARE
    if not abs(mine.square - source.square) <= share * source.square:
        times = (mine.square / source.square) ** 0.5 if source.square else float("inf")
        return f"'{name}' is {times:.3g} times as long as its source's"
    distances = np.square(mine.sums - source.sums).mean(-1)
    by_group = _explained(stored, source.columns)
    allowed = mine.square * FLOAT_SHARE**2 + stored.rows * columns * 1e-15 if by_group is None else by_group.sum()
    if not distances.sum() <= allowed:
        share = (distances.sum() / max(source.square, 1e-300)) ** 0.5
        return f"'{name}' is not its source's: it is {share:.0%} of its length away from it"
    if by_group is not None and (wrong := np.flatnonzero(distances > GROUP_SLACK * by_group)).size:
        starts = [*group_starts(source.rows), source.rows]
        return (
            f"'{name}' has rows that are not its source's, the first from {starts[wrong[0]]} to {starts[wrong[0] + 1]}"
        )
    return None


def _explained(stored: StoredMatrix, columns: int) -> npt.NDArray[np.float64] | None:
    """The squared distance that rounding explains, for each group of rows; None for a matrix that is not rounded."""
    if stored.step is None or stored.rounding is None:
        return None
    by_row: npt.NDArray[np.float64] = np.empty(stored.rows)
    for wanted in _pieces(stored.rows, columns):
        steps = stored.step(wanted)
        counts = torch.full((steps.shape[-1],), float(stored.rounding.block_size))
        counts[-1] -= counts.sum() - columns
        by_row[wanted] = (steps.square() @ counts).double().numpy()
    return np.add.reduceat(by_row, group_starts(stored.rows)) * STEPS**2


def _print(name: str, rows: int, columns: int, read: Rows) -> MatrixPrint:
    by_column = torch.from_numpy(random_signs(f"columns of {name}", columns))
    by_row = random_signs(f"rows of {name}", rows)
    products: npt.NDArray[np.float64] = np.empty((rows, SIGNS))
    square = 0.0
    with torch.inference_mode():
        for wanted in _pieces(rows, columns):
            part = read(wanted)
            products[wanted] = (part @ by_column).double().numpy()
            square += float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2
    return MatrixPrint(rows, columns, np.add.reduceat(products * by_row, group_starts(rows), axis=0), square)


def _pieces(rows: int, columns: int) -> Iterator[slice]:
    at_once = max(1, NUMBERS_AT_ONCE // columns)
    for start in range(0, rows, at_once):
        yield slice(start, min(start + at_once, rows))
