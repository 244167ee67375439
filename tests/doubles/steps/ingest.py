"""A double of ingest: nothing is checked, the content is hashed."""

from pathlib import Path
from typing import Any

from olivepress.errors import BadCheckpoint
from tests.doubles.orders import Orders, content_digest, obey, result_of
from workers.steps.context import StepContext


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """As workers.steps.ingest.run; the result carries the orders for the steps that never see the checkpoint."""
    directory = Path(spec["path"])
    if not (directory / "config.json").is_file():
        raise BadCheckpoint(f"there is no double of a checkpoint in {directory}; write one with write_checkpoint")
    orders = Orders.read(directory)
    obey(orders.of("ingest"), "ingest", context, directory)
    return result_of(orders, content_digest(directory))
