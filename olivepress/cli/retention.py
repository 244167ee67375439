"""`olivepress retention`: remove what is too old to keep, or look what that is."""

from typing import Annotated, Any

import typer

from olivepress.cli.options import AsJson
from olivepress.cli.output import connect, console, emit
from olivepress.cli.tables import NOTHING, figure, plain_table, size, word

Json = dict[str, Any]
WHAT = {
    "remembered": "results that need not be computed again",
    "attempts": "attempts of finished steps, but the last",
    "logs": "logs of attempts that succeeded",
    "workers": "workers that are gone and that no attempt names",
    "artifacts": "artifacts that nothing refers to",
    "chunks": "store content that nothing refers to",
    "temporary": "what dead writers left in the store",
    "trash": "store content that was taken out before",
}


def retention(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what is too old to keep.

    The scheduler does it every hour. Store content goes into a trash first; a run after that frees its space.

    [bold]Examples[/]
      olivepress retention --dry-run
      olivepress retention --json | jq '.kinds[] | select(.count > 0)'
    """
    with connect() as client:
        report = client.retention(dry_run=dry_run)
    if as_json:
        emit(report)
        return
    table = plain_table(
        word("kind"), "what", figure("kept for"), figure("would go" if dry_run else "went"), figure("size")
    )
    for item in report["kinds"]:
        table.add_row(
            item["kind"],
            WHAT.get(item["kind"], NOTHING),
            _period(item["kept_for_s"]),
            str(item["count"]),
            size(item["size_bytes"]) if item["size_bytes"] else NOTHING,
        )
    console().print(table)
    for line in _remarks(report):
        typer.echo(line, err=True)


def _remarks(report: Json) -> list[str]:
    lines = []
    if waiting := report["waiting"]["count"]:
        lines.append(f"{size(report['waiting']['size_bytes'])} in {waiting} files wait in the trash for a later run")
    if put_back := report["put_back"]["count"]:
        lines.append(f"{put_back} files were put back from the trash: something relies on them again")
    if report["problem"]:
        lines.append(f"warning: {report['problem']}")
    return lines


def _period(seconds: float | None) -> str:
    """A period in the largest unit that fits."""
    if seconds is None:
        return "ever"
    for unit_s, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:g} {unit}"
    return f"{seconds:g} s"
