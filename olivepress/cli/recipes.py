"""`olivepress recipes`: what a checkpoint can become."""

from olivepress.cli.options import AsJson
from olivepress.cli.output import connect, console, emit
from olivepress.cli.tables import recipes_table


def recipes(as_json: AsJson = False) -> None:
    """List what a checkpoint can become.

    [bold]Examples[/]
      olivepress recipes
      olivepress recipes --json | jq '.[].name'
    """
    with connect() as client:
        found = client.recipes()
    if as_json:
        emit(found)
    else:
        console().print(recipes_table(found))
