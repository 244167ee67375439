"""The numbers in safetensors files: hashed and looked at in one pass, with a few megabytes of memory."""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from olivepress.checkpoints.files import LET_FINISH, unreadable
from olivepress.checkpoints.safetensors_header import SafetensorsFile, Tensor
from olivepress.errors import BadCheckpoint, CheckpointChanged

PIECE_BYTES = 2**24
TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Nothing that was trained comes near; a flipped top bit of an exponent multiplies by 2^64 or more (float16: 2^16).
LARGEST_PLAUSIBLE = 1e10
# A matrix whose largest number is above the first, and more than the second times the next largest, has a flipped bit:
# trained outliers keep company. A judgement, well away from what was seen; it is no proof of a sound file.
OUTLIER_ABOVE = 16.0
OUTLIER_RATIO = 32.0


class _Seen:
    """What is known of a tensor whose pieces are read one after the other."""

    def __init__(self, dtype: torch.dtype | None, sha256: "hashlib._Hash | None") -> None:
        self.dtype, self.sha256 = dtype, sha256
        self.nan_count = 0
        self.infinity_count = 0
        self.largest = 0.0
        self.second_largest = 0.0

    def add(self, piece: memoryview) -> None:
        if self.sha256:
            self.sha256.update(piece)
        if self.dtype is None:
            return
        values = torch.frombuffer(piece, dtype=self.dtype)
        low, high = (float(bound) for bound in torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            self.nan_count += int(values.isnan().sum())
            self.infinity_count += int(values.isinf().sum())
            return
        magnitudes = [max(abs(low), abs(high))]
        if magnitudes[0] > OUTLIER_ABOVE:
            magnitudes = values.abs().topk(min(2, values.numel())).values.tolist()
        *_, self.second_largest, self.largest = sorted([self.second_largest, self.largest, *magnitudes])


@dataclass(frozen=True)
class ScannedFile:
    """A file as it was read: its SHA-256 (hex), matrices that are all zero, SHA-256 of the tensors asked for."""

    sha256: str
    zero_matrices: list[str] = field(default_factory=list)
    tensor_sha256: dict[str, str] = field(default_factory=dict)


class _Reader:
    """Reads a file from its beginning, piece by piece, and hashes what it gives."""

    def __init__(self, path: Path, source: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        self.sha256 = hashlib.sha256()
        self._path, self._source, self._on_bytes = path, source, on_bytes
        # Starts at an aligned address, which a view into a mapped file need not.
        self._block = memoryview(bytearray(PIECE_BYTES))

    def pieces(self, size_bytes: int) -> Iterator[memoryview]:
        """The next bytes; a piece is valid until the next one is asked for."""
        while size_bytes:
            piece = self._block[: min(size_bytes, PIECE_BYTES)]
            self._fill(piece)
            self.sha256.update(piece)
            self._on_bytes(len(piece))
            size_bytes -= len(piece)
            yield piece

    def _fill(self, piece: memoryview) -> None:
        filled = 0
        while filled < len(piece):
            count = self._source.readinto(piece[filled:])  # type: ignore[attr-defined]
            if not count:
                raise CheckpointChanged(f"{self._path} got shorter while it was read; {LET_FINISH}")
            filled += count


def scan(
    file: SafetensorsFile,
    on_bytes: Callable[[int], None],
    *,
    skip: Callable[[str], bool] = lambda _: False,
    fingerprint: frozenset[str] = frozenset(),
) -> ScannedFile:
    """Read a file once: hash it, and look for numbers that no training leaves.

    Args:
        on_bytes: told how many bytes each piece had.
        skip: tells by name whether a tensor's numbers do not matter.
        fingerprint: names of tensors whose own SHA-256 is wanted.

    Raises:
        BadCheckpoint: a tensor holds NaN, an infinity, or a number that only a damaged file has.
        CheckpointChanged: the file got shorter while it was read.
    """
    zero_matrices, tensor_sha256 = [], {}
    try:
        with file.path.open("rb", buffering=0) as source:
            reader = _Reader(file.path, source, on_bytes)
            for _ in reader.pieces(file.header_bytes):
                pass
            for tensor in file.tensors:
                seen = _Seen(TORCH_DTYPES.get(tensor.dtype), hashlib.sha256() if tensor.name in fingerprint else None)
                for piece in reader.pieces(tensor.size_bytes):
                    seen.add(piece)
                if not skip(tensor.name):
                    _refuse_damage(file, tensor, seen)
                if seen.dtype and len(tensor.shape) > 1 and tensor.size_bytes and seen.largest == 0:
                    zero_matrices.append(tensor.name)
                if seen.sha256:
                    tensor_sha256[tensor.name] = seen.sha256.hexdigest()
    except OSError as error:
        raise unreadable(file.path, error) from None
    return ScannedFile(reader.sha256.hexdigest(), zero_matrices, tensor_sha256)


def _refuse_damage(file: SafetensorsFile, tensor: Tensor, seen: _Seen) -> None:
    where = f"'{tensor.name}' in {file.path}"
    if seen.nan_count or seen.infinity_count:
        counts = [(seen.nan_count, "NaN"), (seen.infinity_count, "infinite")]
        found = " and ".join(f"{count:,} {kind}" for count, kind in counts if count)
        raise BadCheckpoint(
            f"{where} holds {found} of {tensor.element_count:,} numbers: the training diverged or the file is "
            "damaged; submit an earlier checkpoint, or copy the file again"
        )
    is_outlier = seen.largest > max(OUTLIER_ABOVE, OUTLIER_RATIO * seen.second_largest)
    if seen.largest > LARGEST_PLAUSIBLE or (is_outlier and len(tensor.shape) > 1 and tensor.element_count > 1):
        raise BadCheckpoint(
            f"{where} looks damaged: it holds {seen.largest:.3g}, the next largest number is "
            f"{seen.second_largest:.3g}; copy the file again from where it was trained"
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """For the time of a scan: pieces are too small for torch's own threads, and files are read side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
