"""A double of validate: figures that nobody measured, and the verdict that was ordered."""

import json
from typing import Any

from tests.doubles.orders import Order, obey
from workers.steps.context import StepContext


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """As workers.steps.validate.run; the order "gate" gives the verdict failed."""
    artifact = context.inputs["artifact"]
    order = Order(**json.loads((artifact / "orders.json").read_text()).get("validate", {}))
    is_bad = order.ending == "gate"
    obey(Order() if is_bad else order, "validate", context)
    verdict = "failed" if is_bad else "passed"
    note = "a double was ordered to say so"
    gate = {"name": "certificate_required", "limit": True, "figure": not is_bad, "verdict": verdict, "note": note}
    report = {
        "schema_version": 1,
        "hardware": {},
        "load_average": [],
        "size_bytes": sum(file.stat().st_size for file in artifact.iterdir()),
        "source_size_bytes": spec["source_size_bytes"],
        "first_token_ms": {"median": 1.0, "p95": 1.0, "prompt_tokens": 1},
        "tokens_per_s": {"median": 1.0, "p95": 1.0},
        "peak_rss_bytes": 1,
        "prompts": {"total": 0, "with_expectation": 0, "passed": 0, "items": []},
        "certificate": {"status": verdict, "runtime": {}, "name": spec["name"], "exchanges": [], "problem": None},
        "gates": [gate],
    }
    return {"verdict": verdict, "report": report}
