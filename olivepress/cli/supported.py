"""`olivepress supported`: which architectures can be converted, and which cannot and why."""

from typing import Any

import typer
from rich.table import Table

from olivepress.checkpoints.known_architectures import BUILT_WRONGLY, MENDED, NOT_BUILT
from olivepress.cli.options import AsJson
from olivepress.cli.output import connect, console, emit

Json = dict[str, Any]


def supported(as_json: AsJson = False) -> None:
    """List the architectures that convert, and why others do not.

    The first is what the living workers' own toolchains say. A checkpoint's architecture stands in its config.json
    under 'architectures'; `olivepress inspect DIR` shows it.

    [bold]Examples[/]
      olivepress supported
      olivepress supported --json | jq -r '.supported[].architecture'
    """
    with connect() as client:
        offered = {name for worker in client.workers() if worker["alive"] for name in worker["architectures"]}
    found = _described(offered)
    if as_json:
        emit(found)
        return
    if not offered:
        typer.echo(
            "no worker is alive and warm, and only a worker knows what it can convert; start one: olivepress service "
            "worker",
            err=True,
        )
    else:
        console().print(_table("can be converted", found["supported"], "mended here"))
    console().print(_table("cannot be converted", found["not_supported"], "why not"))


def _described(offered: set[str]) -> Json:
    why_not = BUILT_WRONGLY | NOT_BUILT
    return {
        "supported": [{"architecture": name, "mended": MENDED.get(name)} for name in sorted(offered)],
        "not_supported": [
            {"architecture": name, "reason": why_not[name]} for name in sorted(why_not) if name not in offered
        ],
    }


def _table(title: str, rows: list[Json], detail: str) -> Table:
    table = Table(title, detail, box=None, pad_edge=False)
    for row in rows:
        name, *rest = row.values()
        table.add_row(name, rest[0] or "")
    return table
