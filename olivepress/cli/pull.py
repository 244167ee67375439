"""`olivepress pull`: a model version into a directory of this machine."""

from pathlib import Path
from typing import Annotated

import typer

from olivepress.cli.options import AsJson, Team
from olivepress.cli.orders import warn_about
from olivepress.cli.output import connect, download_bar, emit, say
from olivepress.cli.tables import size
from olivepress.client import DEFAULT_TEAM
from olivepress.delivery.pull import pull as pull_version
from olivepress.evidence.trust import Trust
from olivepress.registry import parse_reference


def pull(
    reference: Annotated[str, typer.Argument(metavar="NAME[:VERSION|@ALIAS]", help="Default version: @latest.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Appears whole or not at all.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace what DIR holds.")] = False,
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """Download a version into a directory.

    Only what is not there already: another version in DIR or beside it gives what they have in common. Everything is
    verified, the signature before anything is downloaded (`olivepress verify` does it again later, offline). An
    interrupted pull goes on where it was when it is called again.

    [bold]Examples[/]
      olivepress pull support-en-int4@production --to ./support-en
      olivepress pull support-en-int4:4 --to ./support-en --replace --json
    """
    wanted = parse_reference(reference)
    with connect() as client, client.patient():
        version = client.version(wanted, team)
        warn_about(version)
        with download_bar(version["version"]) as show:
            pulled = pull_version(client, version, to, replace=replace, trust=Trust.of(client, say), on_bytes=show)
    if as_json:
        emit(vars(pulled) | {"directory": str(pulled.directory)})
    elif pulled.was_there:
        typer.echo(f"{pulled.version} was there before: {pulled.directory}")
    else:
        typer.echo(
            f"{pulled.version} is in {pulled.directory}: {size(pulled.total_bytes)}, of which "
            f"{size(pulled.received_bytes)} were downloaded"
        )
