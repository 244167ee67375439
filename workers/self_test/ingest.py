"""The self test's first step: make the checkpoint, then look at it as every ingest does."""

from pathlib import Path
from typing import Any

from workers.steps import ingest
from workers.steps.context import StepContext
from workers.toolchains.taught_checkpoint import make_taught_checkpoint


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """As workers.steps.ingest.run, over a checkpoint that is written to `spec["path"]` first."""
    make_taught_checkpoint(Path(spec["path"]))
    return ingest.run(spec, context)
