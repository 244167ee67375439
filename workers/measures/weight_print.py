"""The print of a checkpoint's weights: small enough to keep, and telling enough to hold an artifact against.

What is kept of a matrix: for each of GROUPS groups of rows and each of SIGNS tries the sum of its numbers times random
signs, one for each row and one for each column; and the sum of its squares. The mean squared difference of the sums of
two matrices is their squared distance (Frobenius), so rounding and another matrix are told apart without the matrix.
Source: Alon, Matias and Szegedy, "The space complexity of approximating the frequency moments" (1996); Achlioptas,
"Database-friendly random projections" (2003). Norms, biases and the frequencies of ropes are kept as they are.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

GROUPS, SIGNS = 64, 4


@dataclass(frozen=True)
class MatrixPrint:
    """Of one matrix: its size, `sums` (groups x SIGNS) and the sum of its squares."""

    rows: int
    columns: int
    sums: npt.NDArray[np.float64]
    square: float


@dataclass(frozen=True)
class WeightPrint:
    """Of a whole checkpoint, by the names that torch gives its weights; `ropes` are frequencies and their factor."""

    is_tied: bool
    matrices: Mapping[str, MatrixPrint] = field(default_factory=dict)
    vectors: Mapping[str, Floats] = field(default_factory=dict)
    ropes: Sequence[tuple[Floats, float]] = ()


def random_signs(what: str, count: int) -> Floats:
    """So many signs, +1 or -1, each try of its own (count x SIGNS); the same ones for the same words and count."""
    bits = np.frombuffer(hashlib.shake_128(f"olivepress {what}".encode()).digest(-(-count * SIGNS // 8)), np.uint8)
    return (np.unpackbits(bits)[: count * SIGNS].reshape(count, SIGNS).astype(np.float32)) * 2 - 1


def group_starts(rows: int) -> npt.NDArray[np.int64]:
    """Where each group of rows begins."""
    groups = min(GROUPS, rows)
    return np.arange(groups, dtype=np.int64) * rows // groups


def to_arrays(weights: WeightPrint) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """As JSON values, and the numbers of it."""
    matrices, vectors = weights.matrices.items(), weights.vectors.items()
    described = {
        "is_tied": weights.is_tied,
        "matrices": [{"name": name, "rows": each.rows, "columns": each.columns} for name, each in matrices],
        "vectors": [{"name": name, "length": len(vector)} for name, vector in vectors],
        "ropes": [{"length": len(frequencies), "factor": factor} for frequencies, factor in weights.ropes],
    }
    return described, {
        "matrix_sums": _joined([each.sums for _, each in matrices], np.float64),
        "matrix_squares": np.asarray([each.square for _, each in matrices], dtype=np.float64),
        "vectors": _joined([vector for _, vector in vectors], np.float32),
        "ropes": _joined([frequencies for frequencies, _ in weights.ropes], np.float32),
    }


def from_arrays(described: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> WeightPrint:
    """What `to_arrays` took apart.

    Raises:
        ValueError, KeyError, TypeError: it is not whole.
    """
    groups = [len(group_starts(each["rows"])) * SIGNS for each in described["matrices"]]
    sums = _cut(arrays["matrix_sums"], groups)
    vectors = _cut(arrays["vectors"], [each["length"] for each in described["vectors"]])
    ropes = _cut(arrays["ropes"], [each["length"] for each in described["ropes"]])
    matrices = {
        each["name"]: MatrixPrint(each["rows"], each["columns"], part.reshape(-1, SIGNS), float(square))
        for each, part, square in zip(described["matrices"], sums, arrays["matrix_squares"], strict=True)
    }
    return WeightPrint(
        is_tied=described["is_tied"],
        matrices=matrices,
        vectors={each["name"]: part for each, part in zip(described["vectors"], vectors, strict=True)},
        ropes=tuple((part, float(each["factor"])) for each, part in zip(described["ropes"], ropes, strict=True)),
    )


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([part.reshape(-1) for part in parts]) if parts else np.zeros(0, dtype=dtype)


def _cut(whole: npt.NDArray[Any], lengths: Sequence[int]) -> list[npt.NDArray[Any]]:
    if len(whole) != sum(lengths):
        raise ValueError(f"{len(whole)} numbers where {sum(lengths)} belong")
    ends = np.cumsum(lengths, dtype=np.int64)
    return [whole[end - length : end] for end, length in zip(ends, lengths, strict=True)]
