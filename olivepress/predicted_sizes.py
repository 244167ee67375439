"""What a batch is going to publish, guessed from the sizes of its checkpoints' files before anybody has read them."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from olivepress.checkpoints.gguf_folder import gguf_path
from olivepress.checkpoints.gguf_header import read_gguf_header
from olivepress.conversion_cost import HALF_BYTES
from olivepress.database.batches import WantedJob
from olivepress.database.quotas import limits_bytes
from olivepress.database.sessions import Database
from olivepress.errors import OlivepressError
from olivepress.manifest import HUB_PREFIX
from olivepress.quotas import predicted_bytes

WEIGHT_SUFFIXES = (".safetensors", ".bin")


def predicted_sizes(database: Database, team: str, jobs: list[WantedJob], roots: Iterable[Path]) -> list[int]:
    """Bytes that each job is going to publish; all 0 where the team's bytes have no limit, so that nobody looks.

    A checkpoint that cannot be seen from here, such as one on a hub, counts 0: publication looks again.

    Args:
        roots: the only directories that are looked into.
    """
    with database.read() as session:
        if not limits_bytes(session, team):
            return [0] * len(jobs)
    allowed = [root.resolve() for root in roots]
    known: dict[str, int] = {}
    sizes = []
    for job in jobs:
        # An adapter becomes as large as its base.
        source = job.entry.base or job.entry.path
        if source not in known:
            known[source] = _weights_bytes(source, allowed)
        sizes.append(predicted_bytes(known[source], job.recipe.precision))
    return sizes


def _weights_bytes(source: str, allowed: list[Path]) -> int:
    if source.startswith(HUB_PREFIX):
        return 0
    with contextlib.suppress(OSError, ValueError):
        directory = Path(source).resolve()
        if any(directory.is_relative_to(root) for root in allowed):
            with os.scandir(directory) as entries:
                files = [entry for entry in entries if entry.name.endswith(WEIGHT_SUFFIXES) and entry.is_file()]
                return sum(entry.stat().st_size for entry in files) or _gguf_bytes(directory)
    return 0


def _gguf_bytes(directory: Path) -> int:
    """What the weights in a GGUF file take in 16 bits each: its own bytes are anything from 2 to 32 bits."""
    with contextlib.suppress(OlivepressError):
        if path := gguf_path(directory):
            return HALF_BYTES * sum(tensor.element_count for tensor in read_gguf_header(path).tensors.values())
    return 0
