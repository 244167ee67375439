"""`olivepress inspect`: what a checkpoint on this machine is, from its headers; needs no stack."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from olivepress import checkpoints
from olivepress.cli import FAILED
from olivepress.cli.options import AsJson
from olivepress.cli.output import console, emit
from olivepress.cli.tables import NOTHING, figure, plain_table, size


def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint, or a LoRA adapter.")],
    base: Annotated[Path | None, typer.Option(metavar="DIR", help="The base of an adapter.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a checkpoint is, without a stack.

    Reads config and headers, not the weights; shows what submitting it would refuse, and what each recipe would cost.
    The exit code is 1 if it would be refused.

    [bold]Examples[/]
      olivepress inspect ./runs/support-en
      olivepress inspect ./lora/legal --base ./base --json
    """
    found = checkpoints.inspect(directory.expanduser(), base.expanduser() if base else None)
    if as_json:
        emit(found)
    else:
        _show(found, console())
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
    to.print(_cost_table(found["cost"]))
    for problem in found["problems"]:
        to.print(Text.assemble(("problem  ", "bold red"), problem), soft_wrap=True)


def _cost_table(cost: dict[str, dict[str, int]]) -> Table:
    table = plain_table("recipe", figure("model size"), figure("peak memory"), figure("workspace"))
    for recipe, predicted in cost.items():
        bytes_of = (predicted["output_bytes"], predicted["peak_ram_bytes"], predicted["scratch_bytes"])
        table.add_row(recipe, *(f"~{size(value)}" for value in bytes_of))
    return table
