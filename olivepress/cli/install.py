"""`olivepress install`: a model version into the cache of Foundry Local on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from olivepress.cli.options import AsJson, Team
from olivepress.cli.output import connect, console, emit
from olivepress.client import DEFAULT_TEAM, Client
from olivepress.foundry import SUMS_FILE
from olivepress.foundry_cache import Installed, install_into_cache
from olivepress.registry import parse_reference


def install(
    reference: Annotated[str, typer.Argument(metavar="NAME[:VERSION|@ALIAS]", help="Default version: @latest.")],
    foundry_cache: Annotated[Path, typer.Option(metavar="DIR", help="Foundry Local's cache directory.")],
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """Install a version into Foundry Local.

    Every file is verified against its checksum. Installing again changes nothing.

    [bold]Examples[/]
      olivepress install support-en-int4 --foundry-cache ~/.foundry/cache/models
      olivepress install support-en-int4:3 --foundry-cache ./cache
      olivepress install support-en-int4@production --foundry-cache ./cache --json
    """
    wanted = parse_reference(reference)
    with connect() as client:
        version = client.version(wanted, team)
        installed = install_version(client, version, foundry_cache)
    if as_json:
        emit({"id": installed.model_id, "directory": str(installed.directory), "was_there": installed.was_there})
    else:
        happened = "was installed before" if installed.was_there else "is installed"
        typer.echo(f"{installed.model_id} {happened}: {installed.directory}")


def install_version(client: Client, version: dict[str, Any], cache_dir: Path) -> Installed:
    """Download a version (as `Client.version` gave it) into a Foundry Local cache, unless it is there whole.

    Raises:
        BadArtifact: a file arrived damaged, or the cache's own index is broken.
        DiskFull: no room in the cache.
    """
    sums = client.read_file(version, SUMS_FILE).decode("utf-8")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        download = progress.add_task(version["version"], total=None)

        def show(done_bytes: int, total_bytes: int) -> None:
            progress.update(download, completed=done_bytes, total=total_bytes)

        def write(directory: Path) -> None:
            client.write_files(version, directory, show)

        return install_into_cache(write, cache_dir, version["model"], version["number"], sums=sums)
