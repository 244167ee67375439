"""`olivepress models`: what is published."""

from typing import Annotated

import typer
from rich.text import Text

from olivepress.cli.options import AsJson, Team
from olivepress.cli.output import connect, console, emit
from olivepress.cli.tables import models_table, versions_table
from olivepress.client import DEFAULT_TEAM


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show the versions of this model.")] = None,
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """List models, or the versions of one.

    [bold]Examples[/]
      olivepress models
      olivepress models support-en-int4
      olivepress models --json | jq '.[].newest.version'
    """
    with connect() as client:
        found = client.models(team) if name is None else client.model(name, team)
    if as_json:
        emit(found)
    elif isinstance(found, dict):
        console().print(Text(found["name"], style="bold"))
        console().print(versions_table(found))
    elif found:
        console().print(models_table(found))
    else:
        typer.echo(f"team '{team}' has published no model yet; submit a checkpoint: olivepress submit DIR", err=True)
