"""`olivepress inspect`: what a checkpoint on this machine is, from its headers; needs no stack."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from olivepress.checkpoints import reading as checkpoints
from olivepress.cli import FAILED
from olivepress.cli.options import AsJson
from olivepress.cli.output import connect, console, emit
from olivepress.cli.tables import NOTHING, duration, figure, plain_table, size, word
from olivepress.conversion_cost import Sizes, predicted_cost
from olivepress.errors import OlivepressError
from olivepress.jobs import StepKind
from olivepress.recipes.recipe import BUILT_IN
from olivepress.step_cost import Learned, Ratio, StepCost, costs_of_job


def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint, or a LoRA adapter.")],
    base: Annotated[Path | None, typer.Option(metavar="DIR", help="The base of an adapter.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a checkpoint is and what its steps will take.

    Reads config and headers, not the weights; shows what submitting it would refuse, and what each step by each
    recipe will take. Needs no stack; one that runs corrects the figures by what past jobs of the family took.
    The exit code is 1 if it would be refused.

    [bold]Examples[/]
      olivepress inspect ./runs/support-en
      olivepress inspect ./lora/legal --base ./base --json
    """
    found = checkpoints.inspect(directory.expanduser(), base.expanduser() if base else None)
    sizes, learned = Sizes(**found["sizes"]), _learned()
    costs = {name: costs_of_job(sizes, found["family"], recipe, learned) for name, recipe in BUILT_IN.items()}
    outputs = {name: predicted_cost(sizes, recipe).output_bytes for name, recipe in BUILT_IN.items()}
    if as_json:
        emit(found | {"cost": {name: _json(outputs[name], steps) for name, steps in costs.items()}})
    else:
        to = console()
        _show(found, to)
        to.print(_cost_table(outputs, costs))
        corrected = sum(ratio.attempts for ratio in learned.values())
        basis = f"corrected by {corrected} attempts of the stack that runs here" if corrected else "from sizes alone"
        to.print(Text(f"predicted {basis}; two cores assumed", style="dim"), soft_wrap=True)
        for problem in found["problems"]:
            to.print(Text.assemble(("problem  ", "bold red"), problem), soft_wrap=True)
    if found["problems"]:
        raise typer.Exit(FAILED)


def _show(found: dict[str, Any], to: Console) -> None:
    facts = {
        "kind": found["kind"],
        "base": found["base"],
        "architecture": f"{found['architecture']} ({found['family']})",
        "parameters": f"{found['parameters']:,} in {found['tensors']} tensors, {found['dtype']}",
        "size": size(found["size_bytes"]),
        "embeddings": "tied" if found["tied_embeddings"] else "not tied",
        "context": f"{found['context_length'] or NOTHING} tokens",
        "vocabulary": str(found["vocabulary_size"] or NOTHING),
        "tokenizer": found["tokenizer_class"],
        "chat template": found["chat_template"],
    }
    to.print(Text(found["path"], style="bold"), soft_wrap=True)
    for name, value in facts.items():
        if value:
            to.print(Text(f"  {name:14}{value}"), soft_wrap=True)


def _learned() -> Learned:
    """What the stack that runs here has learned; nothing without one."""
    try:
        with connect() as client:
            rows = client.costs()
    except OlivepressError:
        return {}
    return {
        (StepKind(row["kind"]), row["family"]): Ratio(row["memory_ratio"], row["seconds_ratio"], row["attempts"])
        for row in rows
    }


def _json(output_bytes: int, steps: dict[StepKind, StepCost]) -> dict[str, Any]:
    return {"output_bytes": output_bytes, "steps": {kind.value: asdict(cost) for kind, cost in steps.items()}}


def _cost_table(outputs: dict[str, int], costs: dict[str, dict[StepKind, StepCost]]) -> Table:
    table = plain_table(
        word("recipe"), figure("model size"), word("step"), figure("peak memory"), figure("workspace"), figure("time")
    )
    for recipe, steps in costs.items():
        head = (recipe, f"~{size(outputs[recipe])}")
        for kind, cost in steps.items():
            workspace = f"~{size(cost.scratch_bytes)}" if cost.scratch_bytes else NOTHING
            table.add_row(*head, kind.value, f"~{size(cost.memory_bytes)}", workspace, f"~{duration(cost.seconds)}")
            head = ("", "")
    return table
