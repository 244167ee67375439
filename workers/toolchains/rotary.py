"""Does a built model turn queries and keys by the angles of its source, at positions far beyond the compared text?

A short text hardly tells a stretched rope from a plain one: the slow angles have not moved yet.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from workers.toolchains.stored_weights import StoredWeights

COSINES = "cos_cache"
# Two ways to multiply a position and a frequency in fp32 part by this much of a turn, for each position.
TOLERANCE, TOLERANCE_A_POSITION = 2e-3, 1e-6
# Ropes whose frequencies depend on how long the text is: the builder writes a table for each case.
BY_LENGTH = ("longrope",)
STEP_SUFFIX = ".step"


Rope = tuple[npt.NDArray[np.float32], float]
"""Frequencies, and the factor that cosines and sines are multiplied by."""


def faults(model: torch.nn.Module, stored: StoredWeights) -> list[str]:
    """What is wrong with the built model's tables of angles, one sentence each."""
    return table_faults(ropes_of(model), stored)


def table_faults(ropes: Sequence[Rope], stored: StoredWeights) -> list[str]:
    """As `faults`, for the ropes of a source that is not at hand any more."""
    if not ropes:
        return []
    found = []
    for name in stored.table_names(COSINES):
        table = stored.table(name)
        positions = np.unique([1, 2, len(table) // 8, len(table) // 2, len(table) - 1])
        cosines = table[positions].astype(np.float32) * (stored.number(f"{name}{STEP_SUFFIX}") or 1.0)
        if not any(_agrees(cosines, positions, *rope) for rope in ropes):
            found.append(f"its table '{name}' turns positions by other angles than the source does")
    return found


def ropes_of(model: torch.nn.Module) -> list[Rope]:
    """Those of each kind of layer; none where they depend on the text's length."""
    ropes: list[Rope] = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if kinds is None or any(kind in BY_LENGTH for kind in (kinds.values() if isinstance(kinds, dict) else [kinds])):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and "original" not in name:
                factor = getattr(module, name.replace("inv_freq", "attention_scaling"), 1.0)
                ropes.append((buffer.float().numpy(), float(factor)))
    return ropes


def _agrees(
    cosines: npt.NDArray[np.float32],
    positions: npt.NDArray[np.int64],
    frequencies: npt.NDArray[np.float32],
    factor: float,
) -> bool:
    if cosines.shape[-1] != len(frequencies) or not np.isfinite(frequencies).all():
        return False
    wanted = np.cos(positions[:, None].astype(np.float32) * frequencies) * factor
    allowed = TOLERANCE + TOLERANCE_A_POSITION * positions[:, None]
    return bool((np.abs(cosines - wanted) <= allowed * max(factor, 1.0)).all())
