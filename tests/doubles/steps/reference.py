"""A double of reference: nothing runs in torch; the checkpoint's content and the prompts decide what it writes."""

import json
from pathlib import Path
from typing import Any

from tests.doubles.orders import Orders, obey
from workers.steps.context import StepContext


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """As workers.steps.reference.run."""
    directory = Path(spec["path"])
    obey(Orders.read(directory).of("reference"), "reference", context, directory)
    said = {"checkpoint": spec["ingest"]["checkpoint_digest"], "prompts": len(spec["prompts"])}
    (context.output / "reference.json").write_text(json.dumps(said, sort_keys=True) + "\n")
    return {"positions": {}, "answers": 0, "not_asked": 0, "yardsticks": {}, "notes": []}
