"""`olivepress store check`: find damage in the store, and heal it."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from olivepress.cli.options import AsJson
from olivepress.cli.output import console, emit
from olivepress.cli.store_progress import store_bar
from olivepress.cli.tables import NOTHING, plain_table, size, word
from olivepress.database import migrations as schema
from olivepress.database.sessions import Database
from olivepress.errors import NotAllowed
from olivepress.settings import Settings
from olivepress.store import open_store, store_at
from olivepress.store_check import Fate, Report
from olivepress.store_check import check as check_store
from olivepress.store_check import repair as repair_store

Json = dict[str, Any]
FAILED = 1
SHOWN = 20


def check(
    repair: Annotated[bool, typer.Option("--repair", help="Heal what can be healed; see above.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Only look whether all is there in full length.")] = False,
    anew: Annotated[bool, typer.Option("--anew", help="Do not go on where an interrupted check was.")] = False,
    copies: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="DIR|URL", help="A store that may have what is damaged here; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find damage in the store, say whom it hurts, and heal it.

    Reads every manifest and every chunk of the store of OLIVEPRESS_STORE_URL or OLIVEPRESS_STORE_DIR, and compares with
    the database of OLIVEPRESS_DATABASE_URL; without these, those of the data directory. The stack may run or not. An
    interrupted check goes on where it was.

    --repair puts back content that exists anywhere: in the trash, in a store that --from names, in the same file of
    another artifact. What is damaged goes to the store's quarantine; nothing is deleted. What exists nowhere is made
    again by a job that runs the same steps, where their toolchain is still there; else its versions are flagged as
    damaged.

    Ends with 1 if anything is left that is not whole.

    [bold]Examples[/]
      olivepress store check
      olivepress store check --fast
      olivepress store check --repair --from /backups/store --from s3://backups/olivepress
      olivepress store check --json | jq '.versions[] | select(.fate != "whole")'
    """
    settings = Settings()
    if repair:
        refuse_for_root(settings)
    database = Database(settings.database)
    try:
        schema.check(database)
        store = open_store(settings)
        others = [store_at(settings, place, must_exist=True) for place in copies or []]
        with store_bar("checking") as show:
            if repair:
                report = repair_store(database, store, others, is_fast=fast, anew=anew, on_progress=show)
            else:
                report = check_store(database, store, is_fast=fast, anew=anew, on_progress=show)
    finally:
        database.dispose()
    if as_json:
        emit(report.to_dict())
    else:
        _show(report, is_repair=repair)
    if not report.is_sound:
        raise typer.Exit(FAILED)


def refuse_for_root(settings: Settings) -> None:
    """Whoever works in the store later must be able to: as root one would leave files that only root may replace.

    Raises: NotAllowed (this is root, and the store is somebody else's).
    """
    if settings.store_url is not None or not hasattr(os, "geteuid") or not settings.store.exists():
        return
    owner = settings.store.stat().st_uid
    if os.geteuid() == 0 and owner != 0:
        raise NotAllowed(
            f"{settings.store} belongs to user {owner}; run this as that user, such as with sudo -u '#{owner}'"
        )


def _show(report: Report, *, is_repair: bool) -> None:
    found = report.to_dict()
    if found["damage"]:
        console().print(_damage_table(found["damage"]))
    if found["versions"]:
        console().print(_versions_table(found["versions"]))
    for line in _remarks(found):
        typer.echo(line, err=True)
    read = "nothing was read" if report.is_fast else f"{size(found['read_bytes'])} were read"
    if found["resumed_bytes"]:
        read += f", {size(found['resumed_bytes'])} by an interrupted check before"
    counted = f"{found['artifacts']} artifacts and {found['chunks']['count']} chunks in {report.store}; {read}"
    typer.echo(f"{'sound' if report.is_sound else 'not sound'}: {counted}")
    if not report.is_sound and not is_repair:
        typer.echo("olivepress store check --repair heals what can be healed", err=True)


def _damage_table(damage: list[Json]) -> Any:
    table = plain_table(word("part"), "sha256", word("damage"), word("outcome"), "where from, or what has it")
    for each in damage[:SHOWN]:
        files = sorted({f"{use['artifact'][:12]}/{use['path']}" for use in each["files"]})
        used = f"{files[0]} and {len(files) - 1} more" if len(files) > 1 else next(iter(files), NOTHING)
        table.add_row(each["kind"], each["sha256"][:16], each["damage"], each["outcome"], each["source"] or used)
    if len(damage) > SHOWN:
        table.add_row("…", f"and {len(damage) - SHOWN} more; --json lists all", "", "", "")
    return table


def _versions_table(versions: list[Json]) -> Any:
    table = plain_table(word("version"), word("team"), word("fate"), "aliases", "what now")
    for each in versions:
        what = each["note"] or ", ".join(each["files"][:3]) or "its manifest"
        if each["fate"] == Fate.QUEUED:
            what = f"job {each['job_id']} makes it again" + (f": {each['note']}" if each["note"] else "")
        table.add_row(each["version"], each["team"], each["fate"], ", ".join(each["aliases"]) or NOTHING, what)
    return table


def _remarks(found: Json) -> list[str]:
    lines = []
    if found["absent_artifacts"]:
        lines.append(
            f"{len(found['absent_artifacts'])} artifacts that the database needs have no manifest in the store"
        )
    if found["unfinished_jobs"]:
        jobs = ", ".join(map(str, found["unfinished_jobs"]))
        lines.append(f"jobs {jobs} are not over and need damaged content: they fail; submit them again then")
    if found["forgotten_results"]:
        lines.append(f"{found['forgotten_results']} remembered results count as misses: they are computed again")
    lines += [_source_line(each) for each in found["sources"] if each["fate"] != Fate.WHOLE]
    if found["set_aside"]:
        lines.append(f"{found['set_aside']} lost artifacts that only memory or nobody needed were taken out of use")
    for what in ("artifacts", "chunks"):
        if count := found["unreferenced"][what]["count"]:
            held = size(found["unreferenced"][what]["size_bytes"])
            lines.append(f"{count} {what} ({held}) are unreferenced: `olivepress retention` removes them in time")
    if count := found["temporary"]["count"]:
        lines.append(f"{count} files of dead writers lie in tmp/: `olivepress retention` removes them")
    if found["quarantined"]:
        lines.append(f"{found['quarantined']} damaged parts lie in the quarantine; delete them when they help nobody")
    return lines


def _source_line(source: Json) -> str:
    lost = f"what the source of {', '.join(source['versions'])} said is lost"
    note = f": {source['note']}" if source["note"] else ""
    if source["fate"] == Fate.QUEUED:
        return f"{lost}; job {source['job_id']} asks it again{note}"
    if source["fate"] == Fate.LOST:
        return f"{lost}, and cannot be made again{note}; measured again, these are not compared with it"
    return f"{lost}; --repair asks it again"


def shown_place(place: Path | str) -> str:
    """A store's place as the settings take it."""
    text = str(place)
    return f"OLIVEPRESS_STORE_URL={text}" if text.startswith("s3://") else f"OLIVEPRESS_STORE_DIR={text}"
