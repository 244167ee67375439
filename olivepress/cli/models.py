"""`olivepress models`: what is published."""

from collections.abc import Iterable
from typing import Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.text import Text

from olivepress.cli.options import AsJson, Team
from olivepress.cli.output import connect, console, emit
from olivepress.cli.registry_tables import models_table, standing_lines, validation_lines, versions_table
from olivepress.client import DEFAULT_TEAM
from olivepress.registry import VerdictKind, VersionSearch


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show the versions of this model.")] = None,
    family: Annotated[str | None, typer.Option("--family", metavar="FAMILY", help="Such as qwen2.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", metavar="PRECISION", help="Such as int4.")] = None,
    verdict: Annotated[
        VerdictKind | None, typer.Option("--verdict", help="Of the gates, when it was published.")
    ] = None,
    max_size: Annotated[str | None, typer.Option("--max-size", metavar="SIZE", help="Such as 500M or 2GB.")] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="TEXT", help="In the model's or the checkpoint's name.")
    ] = None,
    deprecated: Annotated[
        bool | None, typer.Option("--deprecated/--not-deprecated", help="Only those that are, or are not.")
    ] = None,
    flagged: Annotated[
        bool | None, typer.Option("--flagged/--not-flagged", help="Only those with something against them, or without.")
    ] = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Those that are deleted.")] = False,
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """List models, or the versions of one.

    The options search: for models that have such versions, or among the versions of one model.

    [bold]Examples[/]
      olivepress models
      olivepress models support-en-int4
      olivepress models --family qwen2 --precision int4 --verdict passed --max-size 500M
      olivepress models --json | jq '.[].newest.version'
    """
    search = VersionSearch(family, precision, verdict, _size_bytes(max_size), text, deprecated, flagged, deleted)
    with connect() as client:
        found = client.models(team, search) if name is None else client.model(name, team, search)
    out = console()
    if as_json:
        emit(found)
    elif isinstance(found, dict):
        out.print(Text(found["name"], style="bold"))
        out.print(versions_table(found))
        _print_lines(out, found["versions"])
    elif found:
        out.print(models_table(found))
        _print_lines(out, [model["newest"] for model in found if model["newest"]])
    elif search != VersionSearch():
        typer.echo(f"team '{team}' has no model with such a version", err=True)
    else:
        typer.echo(f"team '{team}' has published no model yet; submit a checkpoint: olivepress submit DIR", err=True)


def _print_lines(out: Console, versions: Iterable[dict[str, Any]]) -> None:
    """What is known against these versions, and what was measured of them again."""
    for version in versions:
        for line in [*standing_lines(version), *validation_lines(version)]:
            out.print(line, soft_wrap=True)


def _size_bytes(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise typer.BadParameter(f"'{text}' is no size; write 500M, 2GB or 800MiB", param_hint="--max-size") from None
