"""Whether the tables of angles in a built model are those of its source's ropes, at every position."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from workers.toolchains.rotary import STEP_SUFFIX, TOLERANCE, TOLERANCE_A_POSITION, Rope
from workers.toolchains.stored_weights import StoredWeights

Floats = npt.NDArray[np.float32]
WAVES: dict[str, Callable[[Floats], Floats]] = {"cos_cache": np.cos, "sin_cache": np.sin}
POSITIONS_AT_ONCE = 4096


def rope_faults(ropes: Sequence[Rope], stored: StoredWeights) -> list[str]:
    """What is wrong with the built model's tables of angles, one sentence each; nothing without ropes to compare."""
    found = []
    for kind, wave in WAVES.items() if ropes else ():
        for name in stored.table_names(kind):
            table, step = stored.table(name), stored.number(f"{name}{STEP_SUFFIX}") or 1.0
            ends = [_first_fault(table, step, wave, rope) for rope in ropes]
            if None not in ends:
                first = max(end for end in ends if end is not None)
                found.append(
                    f"its table '{name}' turns positions by other angles than the source does, from {first} on"
                )
    return found


def _first_fault(
    table: npt.NDArray[np.generic], step: float, wave: Callable[[Floats], Floats], rope: Rope
) -> int | None:
    """The first position that this rope turns otherwise; None for none."""
    frequencies, factor = rope
    if table.shape[-1] != len(frequencies) or not np.isfinite(frequencies).all():
        return 0
    for start in range(0, len(table), POSITIONS_AT_ONCE):
        part = table[start : start + POSITIONS_AT_ONCE].astype(np.float32) * step
        positions = np.arange(start, start + len(part), dtype=np.float32)[:, None]
        allowed = (TOLERANCE + TOLERANCE_A_POSITION * positions) * max(factor, 1.0)
        wrong = ~(np.abs(part - wave(positions * frequencies) * factor) <= allowed).all(-1)
        if wrong.any():
            return start + int(wrong.argmax())
    return None
