"""`olivepress install`: a model version into the cache of Foundry Local on this machine."""

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from olivepress.cli.options import AsJson, Team
from olivepress.cli.orders import warn_about
from olivepress.cli.output import connect, download_bar, emit, say
from olivepress.client import DEFAULT_TEAM, Client
from olivepress.delivery.fetching import Fetch, discard, held
from olivepress.errors import OlivepressError
from olivepress.evidence.document import UNSIGNED_FILES
from olivepress.evidence.trust import Trust, remote_content
from olivepress.foundry import index as foundry_index
from olivepress.foundry import runtime as foundry_runtime
from olivepress.foundry.cache import (
    PUBLISHER,
    Installed,
    install_into_cache,
    installed_numbers,
    partial_of,
    uninstall_from_cache,
)
from olivepress.foundry.inference_model import SUMS_FILE, UNFINISHED_FILE
from olivepress.registry import parse_reference

log = logging.getLogger(__name__)


def install(
    reference: Annotated[str, typer.Argument(metavar="NAME[:VERSION|@ALIAS]", help="Default version: @latest.")],
    foundry_cache: Annotated[Path, typer.Option(metavar="DIR", help="Foundry Local's cache directory.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Then uninstall the other versions of this model.")
    ] = False,
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """Install a version into Foundry Local.

    Downloads only what no installed version of the model has, verifies all of it, and goes on where an earlier call was
    interrupted. Installing again changes nothing. Other versions stay, unless --replace is given.

    [bold]Examples[/]
      olivepress install support-en-int4 --foundry-cache ~/.foundry/cache/models
      olivepress install support-en-int4@production --foundry-cache ./cache --replace
      olivepress install support-en-int4:3 --foundry-cache ./cache --json
    """
    wanted = parse_reference(reference)
    with connect() as client, client.patient():
        version = client.version(wanted, team)
        warn_about(version)
        installed = install_version(client, version, foundry_cache)
    replaced = []
    for number in installed_numbers(foundry_cache, version["model"]) if replace else ():
        if number != version["number"]:
            replaced.append(uninstall_from_cache(foundry_cache, version["model"], number).model_id)
    if as_json:
        found = {"id": installed.model_id, "directory": str(installed.directory), "was_there": installed.was_there}
        emit(found | {"replaced": replaced})
        return
    happened = "was installed before" if installed.was_there else "is installed"
    typer.echo(f"{installed.model_id} {happened}: {installed.directory}")
    for model_id in replaced:
        typer.echo(f"{model_id} is uninstalled")


def install_version(client: Client, version: dict[str, Any], cache_dir: Path, trust: Trust | None = None) -> Installed:
    """Download a version (as `Client.version` gave it) into a Foundry Local cache, unless it is there whole.

    Args:
        trust: what is believed of the stack; what this user believes unless given.

    Raises:
        BadArtifact: a file arrived damaged, or is not what was signed; or the cache's own index is broken.
        UntrustedKey: it is signed by a key that is not known to be the stack's.
        DiskFull: no room in the cache.
    """
    manifest = client.artifact_manifest(version)
    (trust or Trust.of(client, say)).check(remote_content(client, version, manifest), version)
    sums = client.read_file(version, SUMS_FILE).decode("utf-8")
    unlisted = {file.path: file.sha256 for file in manifest.files if file.path in UNSIGNED_FILES}
    shelf = cache_dir.expanduser().resolve() / PUBLISHER
    target = shelf / f"{version['model']}-{version['number']}"
    others = [shelf / f"{version['model']}-{number}" for number in installed_numbers(cache_dir, version["model"])]
    with download_bar(version["version"]) as show:

        def write(directory: Path) -> None:
            partial = partial_of(target)
            with held(partial, version["version"]):
                fetch = Fetch(client, version, manifest, partial, show)
                fetch.files.mkdir(exist_ok=True)
                # Older runtimes look into every directory of the cache, and take this for no model.
                (fetch.files / UNFINISHED_FILE).touch()
                fetch.run([target, *reversed(others)], keep=frozenset({UNFINISHED_FILE}))
                fetch.move_into(directory)
                discard(partial)

        return install_into_cache(
            write,
            cache_dir,
            version["model"],
            version["number"],
            sums=sums,
            unlisted=unlisted,
            register=register_by_sdk,
        )


def register_by_sdk(cache_dir: Path, model_id: str, directory: Path) -> None:
    """Add a version to the local catalog: by the SDK where it is installed, which knows its own index best; else, or
    where it declines, by writing the index beside the entries of others.

    Raises:
        BadArtifact, ServiceUnavailable, DiskFull: see `foundry_index.register`.
    """
    if foundry_index.is_registered(cache_dir, model_id, directory):
        return
    if foundry_runtime.has_sdk():
        try:
            foundry_runtime.register(cache_dir, model_id, directory)
        except OlivepressError as error:
            log.info("not registered by the SDK, so in the index itself: %s", error)
    if not foundry_index.is_registered(cache_dir, model_id, directory):
        foundry_index.register(cache_dir, model_id, directory)
