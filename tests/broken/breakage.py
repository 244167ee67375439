"""What a broken checkpoint is: from which sound one it is made, how, and what has to be said of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from olivepress.errors import BadCheckpoint, PermanentError


@dataclass(frozen=True)
class Broken:
    """`says` is a pattern that the message must match: what is wrong, and after it what to do."""

    break_it: Callable[[Path], object]
    says: str
    error: type[PermanentError] = BadCheckpoint
    source: str = "qwen2"
    base: str | None = None
    """Which sound checkpoint is given as base."""
    submit: Callable[[Path], Path] = lambda directory: directory
