"""`olivepress deprecate`, `delete` and `undelete`: versions that should not be used any more."""

from typing import Annotated

import typer

from olivepress.cli.options import AsJson, Team
from olivepress.cli.orders import Force, Reason, order
from olivepress.cli.output import connect, emit
from olivepress.cli.tables import when
from olivepress.client import DEFAULT_TEAM
from olivepress.registry import VersionReference, parse_reference

Version = Annotated[str, typer.Argument(metavar="NAME:VERSION", help="One version, by its number.")]


def deprecate(
    reference: Version,
    successor: Annotated[
        str | None, typer.Option("--successor", metavar="NAME[:VERSION|@ALIAS]", help="What to use instead.")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take it back.")] = False,
    reason: Reason = None,
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """Say that a version should not be used.

    It stays, with the aliases that point to it. Whoever pulls or installs it is told why, and what to use instead.

    [bold]Examples[/]
      olivepress deprecate support-en-int4:2 --reason "answers too tersely" --successor support-en-int4:3
      olivepress deprecate support-en-int4:2 --undo
    """
    wanted = _numbered(reference)
    with connect() as client:
        if undo:
            undone = client.undeprecate(wanted, team)
        else:
            version = client.deprecate(wanted, order(reason), successor, team)
    if as_json:
        emit(undone if undo else version)
    elif not undo:
        typer.echo(f"{version['version']} is deprecated")
    else:
        typer.echo(
            f"{undone['version']} {'is not deprecated any more' if undone['was_undone'] else 'was not deprecated'}"
        )


def delete(
    reference: Version,
    force: Force = False,
    reason: Reason = None,
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """Delete a version.

    Its files stay for a grace period, 7 days unless the stack is set otherwise; until then `olivepress undelete` brings
    it back. Its number is never given again. A version that an alias points to is refused, unless it is forced: the
    alias `latest` then goes to the newest version that is left, other aliases go.

    [bold]Examples[/]
      olivepress delete support-en-int4:2
      olivepress delete support-en-int4:3 --force --reason "trained on the wrong data"
    """
    wanted = _numbered(reference)
    with connect() as client:
        deleted = client.delete_version(wanted, order(reason, is_forced=force), team)
    if as_json:
        emit(deleted)
        return
    for alias, number in deleted["aliases"].items():
        happened = "is gone" if number is None else f"points to version {number} now"
        typer.echo(f"{wanted.name}@{alias} {happened}")
    until = f"until {when(deleted['files_until'])}: olivepress undelete {deleted['version']}"
    typer.echo(f"{deleted['version']} is deleted; it can be brought back {until}")


def undelete(reference: Version, team: Team = DEFAULT_TEAM, as_json: AsJson = False) -> None:
    """Bring a deleted version back.

    Within its grace period. Aliases that went with it do not come back.

    [bold]Examples[/]
      olivepress undelete support-en-int4:2
    """
    wanted = _numbered(reference)
    with connect() as client:
        undone = client.undelete_version(wanted, team)
    if as_json:
        emit(undone)
    else:
        name = undone["version"]
        typer.echo(f"{name} is back, without aliases; to give it one: olivepress promote {name} latest")


def _numbered(reference: str) -> VersionReference:
    """A version by its number: what an alias means may change between a look and the command."""
    wanted = parse_reference(reference)
    if wanted.number is None:
        raise typer.BadParameter(f"name one version by its number, such as {wanted.name}:3", param_hint="NAME:VERSION")
    return wanted
