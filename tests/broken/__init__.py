"""Broken checkpoints, each with what has to be said of it: `TABLE` by name, `write` makes one.

    python -m tests.broken DIRECTORY

writes them all, for a try by hand: `olivepress submit DIRECTORY/*` must name a cause for each and publish none.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.broken import adapters, configs, folders, gguf, templates, tokenizers, weights
from tests.broken.breakage import Broken

__all__ = ["TABLE", "Broken", "write"]

TABLE: Mapping[str, Broken] = {
    **weights.TABLE,
    **configs.TABLE,
    **tokenizers.TABLE,
    **templates.TABLE,
    **adapters.TABLE,
    **folders.TABLE,
    **gguf.TABLE,
}


def write(name: str, sound: Path, into: Path) -> Path:
    """Break a copy of one of the sound checkpoints in `sound`; what to submit lies in `into` and is returned."""
    broken = TABLE[name]
    directory = shutil.copytree(sound / broken.source, into / "broken")
    broken.break_it(directory)
    return broken.submit(directory)
