"""`olivepress export`: a model version as one file, for machines without a network."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from olivepress.cli.options import AsJson, Team
from olivepress.cli.orders import warn_about
from olivepress.cli.output import connect, download_bar, emit
from olivepress.cli.tables import size
from olivepress.client import DEFAULT_TEAM, full_disk_is_named
from olivepress.delivery import archive
from olivepress.delivery.fetching import Fetch, held
from olivepress.errors import PermanentError
from olivepress.registry import parse_reference


def export(
    reference: Annotated[str, typer.Argument(metavar="NAME[:VERSION|@ALIAS]", help="Default version: @latest.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to write, such as support-en.tar.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """Write a version to one file.

    A plain tar, the same bytes every time, for machines without a network. FILE appears whole or not at all; an
    interrupted export goes on where it was.

    [bold]Examples[/]
      olivepress export support-en-int4@production support-en.tar
      olivepress export support-en-int4:3 support-en.tar --force --json
    """
    file = file.expanduser().absolute()
    if file.exists() and not force:
        raise PermanentError(f"{file} exists; --force replaces it")
    partial = file.with_name(f".{file.name}.partial")
    with connect() as client, client.patient():
        version = client.version(parse_reference(reference), team)
        warn_about(version)
        manifest = client.artifact_manifest(version)
        with download_bar(version["version"]) as show, held(partial, version["version"]):
            fetch = Fetch(client, version, manifest, partial, show)
            fetch.run()
            fresh = partial / "archive.tar"
            fresh.unlink(missing_ok=True)
            with full_disk_is_named(partial, manifest.size_bytes):
                archive.write_archive(fresh, version, manifest, fetch.files)
            fresh.replace(file)
        shutil.rmtree(partial, ignore_errors=True)
    size_bytes = file.stat().st_size
    if as_json:
        emit({"version": version["version"], "file": str(file), "size_bytes": size_bytes})
    else:
        typer.echo(f"{version['version']} is in {file}: {size(size_bytes)}")
