"""`olivepress store …`: what the store holds."""

from typing import Any

import typer

from olivepress.cli.options import AsJson
from olivepress.cli.output import connect, console, emit
from olivepress.cli.tables import NOTHING, figure, plain_table, size, word

app = typer.Typer(no_args_is_help=True, help="Look after the store.\n\nExample: olivepress store stats")


@app.callback()
def store() -> None:
    """Look after the store."""


@app.command()
def stats(as_json: AsJson = False) -> None:
    """Show logical and stored bytes by family.

    Logical are the files of all artifacts, stored the distinct chunks that they consist of. A chunk that families share
    counts in each of them and once in the sum.

    [bold]Examples[/]
      olivepress store stats
      olivepress store stats --json | jq '.stored_bytes / .logical_bytes'
    """
    with connect() as client:
        found = client.store()
    if as_json:
        emit(found)
        return
    table = plain_table(word("family"), figure("artifacts"), figure("logical"), figure("stored"), figure("shared"))
    for row in found["families"]:
        table.add_row(row["family"], *_figures(row))
    table.add_row("all", *_figures(found))
    console().print(table)
    typer.echo(f"in {found['name']}", err=True)


def _figures(row: dict[str, Any]) -> tuple[str, ...]:
    logical, stored = row["logical_bytes"], row["stored_bytes"]
    times = f"{logical / stored:.1f} ×" if stored else NOTHING
    return str(row["artifacts"]), size(logical), size(stored), times
