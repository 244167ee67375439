"""Reads a backup back: checks all of it, then loads it in one transaction and brings it up to this release."""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Connection, MetaData, Table, func, insert, inspect, select, text, update
from sqlalchemy.exc import DBAPIError

from olivepress.database import migrations
from olivepress.database.backup import (
    ARTIFACTS,
    CONTENTS,
    FORMAT,
    FORMAT_VERSION,
    REVISION_TABLE,
    ROWS_AT_A_TIME,
    SECRETS,
    TABLES,
    Artifact,
    Backup,
    Member,
    id_sequence,
    reflected,
)
from olivepress.database.sessions import Database
from olivepress.database.tables import Json
from olivepress.errors import PermanentError

READ_BYTES = 1 << 20
# What the readers of gzip, tar and JSON raise for a file that ends too early, was changed or is something else.
DAMAGE = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Restored:
    """What a restore did."""

    backup: Backup
    revision: str
    """The schema's now."""
    missing: list[Artifact]
    """Artifacts that the database refers to and the store does not have."""


def restore(
    database: Database, source: Path, has_artifact: Callable[[str], bool], *, replace: bool = False
) -> Restored:
    """Load a backup into an empty database. Nothing is written before all of the file is checked.

    Steps that ran when the backup was made have lost their leases, so the scheduler's rescue queues them again.

    Args:
        has_artifact: whether the store has an artifact whole.
        replace: drop what the database holds.

    Raises:
        PermanentError: the file is no whole backup or of a newer release, or the database is not empty.
        ServiceUnavailable: the database does not answer.
    """
    with _verified(source) as (tar, backup):
        if not migrations.is_known(backup.revision):
            raise PermanentError(
                f"the backup was made by {backup.made_by}, whose schema '{backup.revision}' this release does not know "
                f"(it has '{migrations.newest_revision()}'); restore it with that release or a newer one"
            )
        with database.schema_change() as connection, _told(source):
            _make_empty(connection, replace=replace)
            migrations.upgrade_to(connection, backup.revision)
            _load(connection, tar, backup)
            migrations.upgrade_to(connection, migrations.HEAD)
        lines = _lines(tar, ARTIFACTS)
        missing = [Artifact(**line) for line in lines if not has_artifact(line["digest"])]
    return Restored(backup, migrations.newest_revision(), missing)


def restore_secrets(source: Path, directory: Path, names: Iterable[str], *, replace: bool = False) -> dict[str, bool]:
    """Write the key files of a backup that have one of these names; only their owner can read them.

    Returns:
        Name -> whether it was written. One that is there with another content stays, unless `replace` says otherwise.
    """
    done: dict[str, bool] = {}
    with _verified(source) as (tar, backup):
        wanted = set(names) & set(backup.secrets)
        for name in sorted(wanted):
            file = directory / name
            content = b"".join(_chunks(tar, SECRETS + name))
            done[name] = replace or not file.exists() or file.read_bytes() == content
            if done[name]:
                _write_secret(file, content)
    return done


@contextmanager
def _verified(source: Path) -> Iterator[tuple[tarfile.TarFile, Backup]]:
    """A backup that was read to its end and held against what it says of itself.

    Raises:
        PermanentError: something is missing, too much or changed.
    """
    with ExitStack() as closing:
        try:
            tar = closing.enter_context(tarfile.open(source, "r:*"))
            backup = _checked(tar)
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno is not None:
                # It cannot be read: another matter than what is in it.
                raise
            # tarfile says over several lines what each of its readers thinks.
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
            raise PermanentError(f"{source} is no whole backup of olivepress: {reason}; take another one") from error
        yield tar, backup


def _checked(tar: tarfile.TarFile) -> Backup:
    found = {info.name for info in tar if info.isfile()}
    assert tar.fileobj is not None
    # To the very end, where gzip has its own checksum, which covers the list of contents.
    while tar.fileobj.read(READ_BYTES):
        pass
    if CONTENTS not in found:
        raise ValueError(f"{CONTENTS} is not in it")
    backup = _contents(json.loads(b"".join(_chunks(tar, CONTENTS))))
    stray = found ^ {CONTENTS, *backup.members}
    if stray:
        raise ValueError(f"it has too much or too little: {', '.join(sorted(stray))}")
    for name, member in backup.members.items():
        digest = hashlib.sha256()
        for chunk in _chunks(tar, name):
            digest.update(chunk)
        if digest.hexdigest() != member.sha256:
            raise ValueError(f"{name} has not the SHA-256 that was noted")
    return backup


def _contents(values: Any) -> Backup:
    if values["format"] != FORMAT:
        raise ValueError(f"its format is {values['format']}")
    if values["format_version"] != FORMAT_VERSION:
        raise PermanentError(
            f"the backup has format version {values['format_version']}, this release reads {FORMAT_VERSION}; "
            f"restore it with {values['made_by']} or a newer release"
        )
    members = {name: Member(**member) for name, member in values["members"].items()}
    return Backup(**values | {"members": members})


@contextmanager
def _told(source: Path) -> Iterator[None]:
    """What the database refuses is a mistake in the backup; outages are translated elsewhere."""
    try:
        yield
    except DBAPIError as error:
        sqlstate = getattr(error.orig, "sqlstate", None) or ""
        # Classes 22 and 23 of SQL: bad values, broken constraints.
        if sqlstate[:2] not in ("22", "23") and type(error).__name__ not in ("IntegrityError", "DataError"):
            raise
        raise PermanentError(f"the database refuses what {source} holds, nothing was changed: {error.orig}") from error


def _chunks(tar: tarfile.TarFile, name: str) -> Iterator[bytes]:
    file = tar.extractfile(name)
    assert file is not None, f"{name} is no file"
    while chunk := file.read(READ_BYTES):
        yield chunk


def _lines(tar: tarfile.TarFile, name: str) -> Iterator[Json]:
    file = tar.extractfile(name)
    assert file is not None, f"{name} is no file"
    for line in file:
        yield json.loads(line)


def _make_empty(connection: Connection, *, replace: bool) -> None:
    metadata = reflected(connection)
    if not replace:
        counts = {
            table.name: connection.scalar(select(func.count()).select_from(table)) for table in metadata.tables.values()
        }
        held = [f"{count} {name}" for name, count in sorted(counts.items()) if count]
        if held:
            raise PermanentError(
                f"the database is not empty (it holds {', '.join(held)}); restore into an empty one, or stop all "
                "services and replace what it holds with --force"
            )
    metadata.drop_all(connection)
    if inspect(connection).has_table(REVISION_TABLE):
        connection.exec_driver_sql(f"DROP TABLE {REVISION_TABLE}")


def _load(connection: Connection, tar: tarfile.TarFile, backup: Backup) -> None:
    metadata = reflected(connection)
    unknown = set(backup.rows) - set(metadata.tables)
    if unknown:
        raise PermanentError(f"the backup holds tables that its schema does not have: {', '.join(sorted(unknown))}")
    with _constraints_at_the_end(connection, metadata):
        for name in backup.rows:
            _load_table(connection, metadata.tables[name], _lines(tar, f"{TABLES}{name}.jsonl"))
    _expire_leases(connection, metadata)
    for table in metadata.sorted_tables:
        _raise_sequence(connection, table, backup.sequences.get(table.name, 0))


def _load_table(connection: Connection, table: Table, rows: Iterator[Json]) -> None:
    for column in table.columns:
        if isinstance(column.type, JSON):
            column.type = JSON(none_as_null=True)
    group: list[Json] = []
    for row in rows:
        unknown = row.keys() - table.columns.keys()
        if unknown:
            raise PermanentError(
                f"the backup's table {table.name} has columns that its schema has not: {sorted(unknown)}"
            )
        group.append({column.name: _value(row, column, connection) for column in table.columns})
        if len(group) == ROWS_AT_A_TIME:
            connection.execute(insert(table), group)
            group = []
    if group:
        connection.execute(insert(table), group)


def _value(row: Json, column: Any, connection: Connection) -> Any:
    value = row.get(column.name)
    if isinstance(column.type, JSON):
        return JSON.NULL if value is None and column.name in row else value
    # PostgreSQL's text cannot hold it; a program's output in a log can.
    if isinstance(value, str) and connection.dialect.name == "postgresql":
        return value.replace("\x00", "\ufffd")
    return value


@contextmanager
def _constraints_at_the_end(connection: Connection, metadata: MetaData) -> Iterator[None]:
    """Foreign keys are checked when all is loaded: a step may refer to a later one. (On SQLite they are off here.)"""
    if connection.dialect.name != "postgresql":
        yield
        return
    keys = [(table.name, key.name) for table in metadata.sorted_tables for key in table.foreign_key_constraints]
    for table, key in keys:
        connection.exec_driver_sql(f'ALTER TABLE "{table}" ALTER CONSTRAINT "{key}" DEFERRABLE INITIALLY DEFERRED')
    yield
    connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
    for table, key in keys:
        connection.exec_driver_sql(f'ALTER TABLE "{table}" ALTER CONSTRAINT "{key}" NOT DEFERRABLE')


def _expire_leases(connection: Connection, metadata: MetaData) -> None:
    """Whoever held a lease when the backup was made does not hold it here."""
    steps, leases = metadata.tables["steps"], metadata.tables["leases"]
    connection.execute(update(steps).where(steps.c.state == "running").values(lease_expires_at=0.0))
    connection.execute(update(leases).values(expires_at=0.0))


def _raise_sequence(connection: Connection, table: Table, highest: int) -> None:
    """Give no id again that was given before the backup was made, whichever rows are left."""
    sequence = id_sequence(connection, table)
    if sequence is None:
        return
    (key,) = table.primary_key.columns
    highest = max(highest, connection.scalar(select(func.max(key))) or 0)
    if highest == 0:
        return
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT setval(:name, :highest)"), {"name": sequence, "highest": highest})
        return
    values = {"name": sequence, "highest": highest}
    connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), values)
    connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :highest)"), values)


def _write_secret(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".restored")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)
    unfinished.replace(file)
