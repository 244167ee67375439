"""`olivepress backup` and `restore`: the database, the key files and what the store should have, in one file."""

from pathlib import Path
from typing import Annotated

import typer

from olivepress.cli.options import AsJson
from olivepress.cli.output import emit
from olivepress.cli.tables import size
from olivepress.database.backup import write_backup
from olivepress.database.restore import Restored, restore_secrets
from olivepress.database.restore import restore as restore_database
from olivepress.database.sessions import Database
from olivepress.settings import SIGNING_KEY_FILE, Settings
from olivepress.store import open_store

# In the data directory; `olivepress up` makes them. Services that get their keys by variables have no such files.
KEY_FILES = ("admin-key", "flower-password", SIGNING_KEY_FILE)
SHOWN_MISSING = 10


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup to write, such as olivepress.tar.gz.")],
    as_json: AsJson = False,
) -> None:
    """Write the database and the keys to a file.

    With them goes a list of the artifacts that the store should have. Works on the database of
    OLIVEPRESS_DATABASE_URL, or that of the data directory, while the services run. The store's content is not in it:
    copy the store's directory too. The file holds secrets; only its owner can read it.

    [bold]Examples[/]
      olivepress backup /backups/olivepress-monday.tar.gz
      OLIVEPRESS_DATABASE_URL=postgresql+psycopg://… olivepress backup team.tar.gz --json
    """
    settings = Settings()
    database, store = Database(settings.database), open_store(settings)
    secrets = [settings.data_dir / name for name in KEY_FILES if (settings.data_dir / name).is_file()]
    try:
        written = write_backup(database, file, store.has, secrets)
    finally:
        database.dispose()
    size_bytes = file.stat().st_size
    if as_json:
        emit(
            {
                "file": str(file),
                "size_bytes": size_bytes,
                "revision": written.revision,
                "rows": written.rows,
                "artifacts": written.artifacts,
                "secrets": written.secrets,
            }
        )
        return
    typer.echo(
        f"{file}: {sum(written.rows.values())} rows of {len(written.rows)} tables, {len(secrets)} key files, "
        f"the list of {written.artifacts} artifacts; {size(size_bytes)}"
    )
    typer.echo(f"keep it secret, and copy the store beside it: {store.name}", err=True)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `olivepress backup` wrote.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace what the database holds, and key files that differ.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Load a backup into an empty database.

    Of whichever kind; it is brought up to this release. Stop all services before. The whole file is checked before
    anything is written, and all of the database is written or nothing. Steps that ran when the backup was made are
    queued again by the scheduler.

    [bold]Examples[/]
      olivepress restore olivepress-monday.tar.gz
      OLIVEPRESS_DATABASE_URL=postgresql+psycopg://… olivepress restore laptop.tar.gz
    """
    settings = Settings()
    database, store = Database(settings.database), open_store(settings)
    try:
        done = restore_database(database, file, store.has, replace=force)
    finally:
        database.dispose()
    keys = restore_secrets(file, settings.data_dir, KEY_FILES, replace=force)
    if as_json:
        emit(
            {
                "database": database.name,
                "rows": done.backup.rows,
                "revision": done.revision,
                "secrets": keys,
                "missing_artifacts": [vars(artifact) for artifact in done.missing],
            }
        )
        return
    _tell(database.name, done, keys, settings, store.name)


def _tell(name: str, done: Restored, keys: dict[str, bool], settings: Settings, store: str) -> None:
    typer.echo(f"{sum(done.backup.rows.values())} rows are in {name}")
    if done.revision != done.backup.revision:
        typer.echo(f"the schema was brought from '{done.backup.revision}' to '{done.revision}'")
    for key_file, is_written in keys.items():
        file = settings.data_dir / key_file
        typer.echo(f"{file}: restored" if is_written else f"{file}: differs and was left; --force replaces it")
    published = [artifact for artifact in done.missing if artifact.is_published]
    if len(done.missing) > len(published):
        count = len(done.missing) - len(published)
        typer.echo(f"the store lacks {count} artifacts of steps; they are made again when they are needed")
    if published:
        typer.echo(
            f"warning: {len(published)} artifacts of published versions cannot be installed: copy them to the "
            f"store {store}:",
            err=True,
        )
        for artifact in published[:SHOWN_MISSING]:
            typer.echo(f"  {artifact.digest}", err=True)
        if len(published) > SHOWN_MISSING:
            typer.echo(f"  … and {len(published) - SHOWN_MISSING} more; --json lists all", err=True)
