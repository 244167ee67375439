"""`olivepress workers`: who runs the steps."""

import typer

from olivepress.cli.options import AsJson
from olivepress.cli.output import connect, console, emit
from olivepress.cli.tables import workers_table


def workers(as_json: AsJson = False) -> None:
    """List the workers.

    Those that live, and those that stopped or were lost within the last day.

    [bold]Examples[/]
      olivepress workers
      olivepress workers --json | jq '.[] | select(.alive) | .toolchain'
    """
    with connect() as client:
        found = client.workers()
    if as_json:
        emit(found)
    elif found:
        console().print(workers_table(found))
    else:
        typer.echo("no worker was seen within the last day; start one: olivepress service worker", err=True)
