"""`olivepress quotas …`: what teams may have, and what they have."""

from typing import Annotated, Any

import typer

from olivepress.cli.options import AsJson
from olivepress.cli.output import connect, console, emit
from olivepress.cli.tables import NOTHING, figure, plain_table, size, word
from olivepress.errors import BadManifest
from olivepress.quotas import parse_size

Json = dict[str, Any]
NO_LIMIT = "none"
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Show and set what teams may have.\n\nExample: olivepress quotas show",
    rich_markup_mode="rich",
)


@app.callback()
def quotas() -> None:
    """Show and set what teams may have."""


@app.command()
def show(
    team: Annotated[str | None, typer.Argument(metavar="TEAM", help="Default: every team that has a quota.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show limits, and what of them is used.

    Bytes are those of all files of the versions that are not deleted; what versions share in the store counts in each.
    Waiting are jobs that are not over, and the bytes that they are predicted to publish.

    [bold]Examples[/]
      olivepress quotas show
      olivepress quotas show research --json
    """
    with connect() as client:
        found = [client.quota(team)] if team else client.quotas()
    if as_json:
        emit(found[0] if team else found)
        return
    if not found:
        typer.echo("no team has a quota; `olivepress quotas set TEAM --bytes 50G` gives it one", err=True)
        return
    _show(found)


@app.command("set")
def set_(
    team: Annotated[str, typer.Argument(metavar="TEAM")],
    size_limit: Annotated[
        str | None, typer.Option("--bytes", metavar="SIZE", help="Of published versions, such as 50G; none: no limit.")
    ] = None,
    versions: Annotated[
        str | None, typer.Option("--versions", metavar="COUNT", help="Published versions; none: no limit.")
    ] = None,
    jobs: Annotated[
        str | None, typer.Option("--jobs", metavar="COUNT", help="Jobs that wait or run; none: no limit.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set some of a team's limits; the others stay.

    What a team has beyond a limit stays, too: it just gets no more. A submission is refused before work starts, and a
    publication again where the predictions were too low.

    [bold]Examples[/]
      olivepress quotas set research --bytes 50G --versions 200
      olivepress quotas set research --jobs 1000 --bytes none
    """
    limits: Json = {}
    if size_limit is not None:
        limits["max_bytes"] = None if size_limit == NO_LIMIT else parse_size(size_limit)
    for name, text in (("max_versions", versions), ("max_jobs", jobs)):
        if text is not None:
            limits[name] = None if text == NO_LIMIT else _count(text)
    if not limits:
        raise BadManifest("say which limit: --bytes, --versions or --jobs")
    with connect() as client:
        found = client.set_quota(team, limits)
    if as_json:
        emit(found)
    else:
        _show([found])


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise BadManifest(f"'{text}' is no count; write a whole number, or {NO_LIMIT}")
    return int(text)


def _show(found: list[Json]) -> None:
    table = plain_table(
        word("team"),
        figure("bytes"),
        figure("of"),
        figure("versions"),
        figure("of"),
        figure("waiting"),
        figure("of"),
        figure("they may add"),
    )
    for row in found:
        used = row["used"]
        table.add_row(
            row["team"],
            size(used["bytes"]),
            NOTHING if row["max_bytes"] is None else size(row["max_bytes"]),
            str(used["versions"]),
            _limit(row["max_versions"]),
            str(used["waiting_jobs"]),
            _limit(row["max_jobs"]),
            size(used["waiting_bytes"]),
        )
    console().print(table)


def _limit(value: int | None) -> str:
    return NOTHING if value is None else str(value)
