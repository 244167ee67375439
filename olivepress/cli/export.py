"""`olivepress export` and `import`: a model version as one file, for machines without a network."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from olivepress import archive
from olivepress.cli.install import register_by_sdk
from olivepress.cli.options import AsJson, Team
from olivepress.cli.orders import warn_about
from olivepress.cli.output import connect, download_bar, emit, say
from olivepress.cli.tables import size
from olivepress.client import DEFAULT_TEAM, full_disk_is_named
from olivepress.errors import BadManifest, PermanentError
from olivepress.fetching import Fetch, held
from olivepress.foundry_cache import install_into_cache
from olivepress.known_keys import KnownKeys
from olivepress.registry import parse_reference
from olivepress.trust import check_without_stack, unpacked_content


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
    with connect() as client:
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


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `olivepress export` wrote.")],
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="A new directory.")] = None,
    foundry_cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Foundry Local's cache directory: install it there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Unpack or install a version from one file.

    Needs no stack and no network. Nothing in the file is trusted: every name, size and checksum is verified, and what
    is not as `olivepress export` writes it is refused; so is what is not as it was signed, where the key is known here.

    [bold]Examples[/]
      olivepress import support-en.tar --foundry-cache ~/.foundry/cache/models
      olivepress import support-en.tar --to ./support-en --json
    """
    if (to is None) == (foundry_cache is None):
        raise BadManifest("say where to: either --to DIR or --foundry-cache DIR")
    found = archive.read_archive(file)
    name = f"{found.model}:{found.number}"
    with download_bar(name) as show:

        def write(directory: Path) -> None:
            archive.extract(found, directory, show)
            check_without_stack(unpacked_content(directory, found.manifest), name, KnownKeys.default(), say)

        if foundry_cache is not None:
            installed = install_into_cache(write, foundry_cache, found.model, found.number, register=register_by_sdk)
            directory, was_there = installed.directory, installed.was_there
        else:
            directory, was_there = _unpack(write, found, to or Path()), False
    if as_json:
        emit({"version": name, "directory": str(directory), "was_there": was_there})
    else:
        typer.echo(f"{name} {'was there before' if was_there else 'is in'}: {directory}")


def _unpack(write: Callable[[Path], None], found: archive.Archive, target: Path) -> Path:
    """The version as a new directory, which appears whole or not at all."""
    target = target.expanduser().absolute()
    if target.exists():
        raise PermanentError(f"{target} exists already; remove it or choose another directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        with full_disk_is_named(target.parent, found.manifest.size_bytes):
            write(partial)
        # mkdtemp makes it private; this is as readable as any new directory.
        partial.chmod(0o755)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target
