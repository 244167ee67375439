"""`olivepress uninstall`: a model version out of the cache of Foundry Local on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from olivepress.cli.options import AsJson
from olivepress.cli.output import emit
from olivepress.errors import BadManifest, NotFound
from olivepress.foundry.cache import installed_numbers, uninstall_from_cache
from olivepress.registry import parse_reference


def uninstall(
    reference: Annotated[str, typer.Argument(metavar="NAME[:VERSION]")],
    foundry_cache: Annotated[Path, typer.Option(metavar="DIR", help="Foundry Local's cache directory.")],
    every: Annotated[bool, typer.Option("--all", help="All versions of the model.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a version from Foundry Local.

    Its entry in the local catalog, then its files. Needs no stack. What others installed is left alone.

    [bold]Examples[/]
      olivepress uninstall support-en-int4:2 --foundry-cache ~/.foundry/cache/models
      olivepress uninstall support-en-int4 --all --foundry-cache ./cache
    """
    numbers = _numbers(reference, foundry_cache, every)
    name = parse_reference(reference).name
    gone = [uninstall_from_cache(foundry_cache, name, number) for number in numbers]
    if as_json:
        emit([{"id": each.model_id, "directory": str(each.directory), "was_there": each.was_there} for each in gone])
        return
    for each in gone:
        typer.echo(f"{each.model_id} is uninstalled" if each.was_there else f"{each.model_id} was not installed")


def _numbers(reference: str, foundry_cache: Path, every: bool) -> list[int]:
    wanted = parse_reference(reference)
    if "@" in reference:
        raise BadManifest(f"a cache knows no aliases; write {wanted.name}:NUMBER, or {wanted.name} --all")
    if wanted.number is not None:
        return [wanted.number]
    installed = installed_numbers(foundry_cache, wanted.name)
    if not installed:
        raise NotFound(f"no version of {wanted.name} is installed in {foundry_cache}")
    if len(installed) > 1 and not every:
        known = ", ".join(f"{wanted.name}:{number}" for number in installed)
        raise BadManifest(f"{known} are installed; name one of them, or give --all")
    return installed
