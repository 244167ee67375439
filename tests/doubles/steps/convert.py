"""A double of convert: a directory of several files, decided by the checkpoint's content and the recipe."""

import json
from pathlib import Path
from typing import Any

from olivepress.jobs import digest_of
from tests.doubles.orders import Order, Orders, model_bytes, obey
from workers.steps.context import StepContext

SMALLEST_BYTES = 1000
SHARDS = 3


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """As workers.steps.convert.run."""
    directory = Path(spec["path"])
    order = Orders.read(directory).of("convert")
    obey(order, "convert", context, directory)
    write_model(spec["ingest"]["checkpoint_digest"], spec["build"], order, context.output)
    (context.output / "orders.json").write_text(json.dumps(spec["ingest"]["orders"], sort_keys=True) + "\n")
    return {"parity": {}, "notes": []}


def write_model(checkpoint_digest: str, build: dict[str, Any], order: Order, output: Path) -> None:
    """The files of the model: a shard that all recipes of a checkpoint share, and others of this recipe alone."""
    own = digest_of([checkpoint_digest, build])
    count = max(SMALLEST_BYTES, order.bytes // SHARDS)
    (output / "shared.bin").write_bytes(model_bytes(checkpoint_digest, count))
    for number in range(1, SHARDS):
        (output / f"model-{number}.bin").write_bytes(model_bytes(f"{own} {number}", count))
    (output / "genai_config.json").write_text(json.dumps({"model": {"context_length": 2048}, "search": {}}) + "\n")
