"""What a step is given by the attempt that runs it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


def _ignore_progress(phase: str, share: float) -> None:
    """Progress goes nowhere (a step that is run by hand)."""


@dataclass(frozen=True)
class StepContext:
    """Directories and the progress line of one attempt.

    `output` is an empty directory: what a step leaves there becomes its artifact. `inputs` are artifacts of
    earlier steps, materialised for reading only. `scratch` is free for temporary files, caches and HOME of the tools;
    all three lie in the attempt's workspace and vanish with it. `exclusive_lock` is a file whose `flock` gives
    the host to one timed measure at a time.
    """

    output: Path
    scratch: Path
    exclusive_lock: Path
    inputs: dict[str, Path] = field(default_factory=dict)
    report_progress: Callable[[str, float], None] = _ignore_progress
