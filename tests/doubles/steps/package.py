"""A double of package: the converted files and one that the recipe's settings decide."""

import json
import shutil
from typing import Any

from tests.doubles.orders import Order, obey
from workers.steps.context import StepContext


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """As workers.steps.package.run."""
    artifact = context.inputs["artifact"]
    orders = json.loads((artifact / "orders.json").read_text())
    obey(Order(**orders.get("package", {})), "package", context)
    shutil.copytree(artifact, context.output, dirs_exist_ok=True)
    (context.output / "package.json").write_text(json.dumps(spec, sort_keys=True) + "\n")
    size_bytes = sum(file.stat().st_size for file in context.output.iterdir())
    return {"prompt_template": None, "prompt_template_reason": "a double has none", "size_bytes": size_bytes}
