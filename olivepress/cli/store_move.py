"""`olivepress store move`: copy the store into another one, and say how to go over to it."""

from typing import Annotated

import typer

from olivepress.cli.options import AsJson
from olivepress.cli.output import emit
from olivepress.cli.store_check import FAILED, refuse_for_root, shown_place
from olivepress.cli.store_progress import store_bar
from olivepress.cli.tables import duration, size
from olivepress.database import migrations as schema
from olivepress.database.sessions import Database
from olivepress.settings import Settings
from olivepress.store import open_store, store_at
from olivepress.store.moving import Moved
from olivepress.store_move import move as move_store
from olivepress.store_move import refuse_one

SHOWN = 10


def move(
    to: Annotated[str, typer.Option("--to", metavar="DIR|URL", help="A directory, or s3://BUCKET/PREFIX.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read everything there back in the end.")] = False,
    while_running: Annotated[
        bool, typer.Option("--while-running", help="Copy most of it before the stack is stopped.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy the store into a bucket or another directory.

    From the store of OLIVEPRESS_STORE_URL or OLIVEPRESS_STORE_DIR, which stays as it is. Stop scheduler and workers
    before; the API may go on, for it only reads. Every chunk is verified when it is read. A run that was interrupted
    goes on where it was; one more copies only what is new. A bucket is reached with the credentials of the settings.

    [bold]Examples[/]
      olivepress store move --to s3://models/olivepress --while-running
      olivepress store move --to s3://models/olivepress --verify
      olivepress store move --to /mnt/new/store --verify --json
    """
    settings = Settings()
    refuse_for_root(settings)
    database = Database(settings.database)
    try:
        schema.check(database)
        source = open_store(settings)
        refuse_one(source.name, to)  # before anything is made there
        target = store_at(settings, to, must_exist=False)
        with store_bar("copying") as show:
            moved = move_store(
                database, source, target, verify=verify, while_running=while_running, on_progress=show
            )  # fmt: skip
    finally:
        database.dispose()
    if as_json:
        emit(_as_json(moved, source.name, target.name))
    else:
        _tell(moved, source.name, target.name, is_final=not while_running)
    if not moved.is_complete:
        raise typer.Exit(FAILED)


def _as_json(moved: Moved, source: str, target: str) -> dict[str, object]:
    return {
        "schema_version": 1,
        "from": source,
        "to": target,
        "complete": moved.is_complete,
        "artifacts": moved.artifacts,
        "new_artifacts": moved.new_artifacts,
        "copied": vars(moved.copied),
        "already_there": vars(moved.already_there),
        "verified_bytes": moved.verified_bytes,
        "failed": moved.failed,
        "damaged": [each.part.sha256 for each in moved.damaged],
        "seconds": round(moved.seconds, 3),
    }


def _tell(moved: Moved, source: str, target: str, *, is_final: bool) -> None:
    pace = f" at {size(moved.copied.size_bytes / moved.seconds)}/s" if moved.seconds >= 1 else ""
    typer.echo(
        f"{moved.artifacts} artifacts of {source} are in {target}, {moved.new_artifacts} of them new: "
        f"{size(moved.copied.size_bytes)} in {moved.copied.count} chunks were copied, "
        f"{size(moved.already_there.size_bytes)} were there; {duration(moved.seconds)}{pace}"
    )
    if moved.verified_bytes is not None:
        typer.echo(f"{size(moved.verified_bytes)} were read back from there and are right")
    for digest, why in list(moved.failed.items())[:SHOWN]:
        typer.echo(f"warning: artifact {digest[:12]} was not copied: {why}", err=True)
    if len(moved.failed) > SHOWN:
        typer.echo(f"… and {len(moved.failed) - SHOWN} more; --json lists all", err=True)
    if moved.failed:
        typer.echo("olivepress store check says whom this hurts; with --repair it heals what can be healed", err=True)
    elif not is_final:
        typer.echo("stop scheduler and workers and run this again without --while-running, then go over", err=True)
    else:
        unset = "" if target.startswith("s3://") else " and no OLIVEPRESS_STORE_URL"
        typer.echo(
            f"to go over, start every service with {shown_place(target)}{unset}; {source} is as it was", err=True
        )
