"""`olivepress promote` and `olivepress aliases`: which version a name such as `production` means."""

from typing import Annotated

import typer
from rich.text import Text

from olivepress.cli.options import AsJson, Team
from olivepress.cli.orders import Force, Reason, order
from olivepress.cli.output import connect, console, emit, say
from olivepress.cli.registry_tables import aliases_table, moves_table
from olivepress.client import DEFAULT_TEAM
from olivepress.registry import check_model_name, parse_reference


def promote(
    reference: Annotated[str, typer.Argument(metavar="NAME[:VERSION|@ALIAS]", help="Default version: @latest.")],
    alias: Annotated[str | None, typer.Argument(metavar="ALIAS", help="The alias to point to it.")] = None,
    back: Annotated[
        bool, typer.Option("--back", help="Move NAME@ALIAS back to the version that it pointed to before.")
    ] = False,
    force: Force = False,
    reason: Reason = None,
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """Point an alias to a version.

    A version that failed to be certified again, was imported without validation, published by force, damaged,
    deprecated or deleted is refused; --force with a reason overrides all but the last, and both are kept.

    [bold]Examples[/]
      olivepress promote support-en-int4:3 production
      olivepress promote support-en-int4@staging production --reason "passed the pilot"
      olivepress promote support-en-int4@production --back --reason "too terse"
    """
    wanted = parse_reference(reference)
    wish = order(reason, is_forced=force)
    if back:
        if alias is not None or "@" not in reference:
            raise typer.BadParameter("write NAME@ALIAS, such as support-en-int4@production", param_hint="--back")
        with connect() as client:
            moved = client.roll_back(wanted.name, wanted.alias or "", wish, team)
    elif alias is None:
        raise typer.BadParameter("name the alias, such as production", param_hint="ALIAS")
    else:
        with connect() as client:
            moved = client.promote(wanted, alias, wish, team)
    for text in moved["overridden"]:
        say(f"overridden: {text}")
    if as_json:
        emit(moved)
        return
    before = f" (before: {moved['from_number']})" if moved["from_number"] is not None else ""
    happened = f"points to version {moved['number']} now{before}" if moved["is_moved"] else "points there already"
    typer.echo(f"{moved['model']}@{moved['alias']} {happened}")


def aliases(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model.")],
    alias: Annotated[str | None, typer.Option("--alias", metavar="ALIAS", help="Only moves of this one.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most so many moves.")] = 20,
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """Show where aliases point, and their history.

    [bold]Examples[/]
      olivepress aliases support-en-int4
      olivepress aliases support-en-int4 --alias production --json | jq '.history[0].moved_by'
    """
    check_model_name(name)
    with connect() as client:
        found = client.aliases(name, team)
        moves = client.alias_history(name, alias, team, limit)
    if as_json:
        emit(found | {"history": moves})
        return
    out = console()
    out.print(Text(found["model"], style="bold"))
    out.print(aliases_table(found))
    out.print()
    out.print(moves_table(moves))
