"""`olivepress store …`: what the store holds."""

from typing import Any

import typer

from olivepress.cli.lazy import LazyCommand, LazyGroup
from olivepress.cli.options import AsJson
from olivepress.cli.output import connect, console, emit
from olivepress.cli.tables import NOTHING, figure, plain_table, size, when, word

ON_STORE = "Where the store is"
SHOWN = 5


class StoreCommands(LazyGroup):
    """What there is to do with the store; a client needs no server packages for the first."""

    lazy_commands = {  # noqa: RUF012  # read only; ClassVar would clash with the attribute's declaration
        "stats": LazyCommand("olivepress.cli.store", "stats", "Show logical and stored bytes by family.", "Anywhere"),
        "check": LazyCommand(
            "olivepress.cli.store_check", "check", "Find damage in the store, and heal it.", ON_STORE, "server"
        ),
        "move": LazyCommand(
            "olivepress.cli.store_move", "move", "Copy the store into a bucket or a directory.", ON_STORE, "server"
        ),
    }


app = typer.Typer(
    cls=StoreCommands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Look after the store.\n\nExample: olivepress store stats",
)


@app.callback()
def store() -> None:
    """Look after the store."""


def stats(as_json: AsJson = False) -> None:
    """Show logical and stored bytes by family, and what the last check of the store found.

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
    typer.echo(_last_check(found["last_check"]), err=True)


def _last_check(check: dict[str, Any] | None) -> str:
    if check is None:
        return "it was never checked; run `olivepress store check` where it is"
    if check["sound"]:
        return f"it was sound when all of it was read, {when(check['finished_at'])}"
    hurt = [f"{each['version']} ({each['fate']})" for each in check["report"]["versions"] if each["fate"] != "whole"]
    more = f" and {len(hurt) - SHOWN} more" if len(hurt) > SHOWN else ""
    named = f": {', '.join(hurt[:SHOWN])}{more}" if hurt else ""
    return (
        f"warning: it was not sound when all of it was read, {when(check['finished_at'])}{named}; "
        "`olivepress store check --repair` where it is heals what can be healed"
    )


def _figures(row: dict[str, Any]) -> tuple[str, ...]:
    logical, stored = row["logical_bytes"], row["stored_bytes"]
    times = f"{logical / stored:.1f} ×" if stored else NOTHING
    return str(row["artifacts"]), size(logical), size(stored), times
