"""Writes a backup: the database as it is at one moment, key files, and what it refers to in the store.

One file for every kind of database, so a backup of SQLite restores into PostgreSQL and back. It is a gzipped tar:

    tables/NAME.jsonl      one JSON object a row, by column; NULL is left out, so null is JSON's own in a JSON column
    store/artifacts.jsonl  each artifact that the database refers to: digest, from where, whether the store has it
    secrets/NAME           key files of the data directory
    backup.json            what it is, and rows, size and SHA-256 of each other member; the last one, so a file that
                           has it is whole

The columns are those that the database has, not those of this release: a backup can be made before an upgrade.
"""

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from sqlalchemy import JSON, Connection, Integer, MetaData, Table, Text, cast, inspect, or_, select, text

import olivepress
from olivepress.database.migrations import current_revision
from olivepress.database.sessions import Database, DatabaseNow
from olivepress.database.tables import Json
from olivepress.errors import PermanentError

FORMAT, FORMAT_VERSION = "olivepress-backup", 1
CONTENTS = "backup.json"
TABLES, SECRETS = "tables/", "secrets/"
ARTIFACTS = "store/artifacts.jsonl"
REVISION_TABLE = "alembic_version"
ROWS_AT_A_TIME = 500
# Columns that hold the digest of an artifact in the store.
REFERENCES = ("artifact_digest", "package_digest")


@dataclass(frozen=True)
class Member:
    """One member of the tar."""

    rows: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Backup:
    """What backup.json says."""

    revision: str
    """Of the schema, as the migrations name it."""
    created_at: float
    made_by: str
    database: str
    sequences: dict[str, int]
    """By table: the highest id that was ever given, so that ids of deleted rows are not given again."""
    members: dict[str, Member]
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def rows(self) -> dict[str, int]:
        """How many rows each table has."""
        names = [name for name in self.members if name.startswith(TABLES)]
        return {name.removeprefix(TABLES).removesuffix(".jsonl"): self.members[name].rows for name in names}

    @property
    def artifacts(self) -> int:
        """How many artifacts it lists."""
        return self.members[ARTIFACTS].rows

    @property
    def secrets(self) -> list[str]:
        """Names of the key files."""
        return [name.removeprefix(SECRETS) for name in self.members if name.startswith(SECRETS)]


@dataclass(frozen=True)
class Artifact:
    """An artifact that the database refers to."""

    digest: str
    in_store: bool
    referred_by: list[str]
    """Columns as `table.column`."""

    @property
    def is_published(self) -> bool:
        """Whether a model version needs it; what only steps refer to is made again when it is needed."""
        return any(column.startswith("versions.") for column in self.referred_by)


def write_backup(
    database: Database, target: Path, has_artifact: Callable[[str], bool], secrets: Iterable[Path] = ()
) -> Backup:
    """Write a backup of the database to a new file that only its owner can read. Services may go on meanwhile.

    Args:
        has_artifact: whether the store has an artifact whole.
        secrets: key files to put in.

    Raises:
        PermanentError: the target exists, or the database has no schema.
        ServiceUnavailable: the database does not answer.
    """
    if target.exists():
        raise PermanentError(f"{target} exists already; choose another name for the backup")
    with _new_file(target) as file, tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as tar:
        return _Writer(tar, target.parent).write(database, has_artifact, secrets)


def reflected(connection: Connection) -> MetaData:
    """The tables that are there, whatever release made them; not the one that holds the revision."""
    names = [name for name in inspect(connection).get_table_names() if name != REVISION_TABLE]
    metadata = MetaData()
    metadata.reflect(connection, only=names)
    return metadata


def id_sequence(connection: Connection, table: Table) -> str | None:
    """The name under which the database counts a table's ids; None where it does not."""
    keys = list(table.primary_key.columns)
    if len(keys) != 1 or not isinstance(keys[0].type, Integer):
        return None
    if connection.dialect.name == "postgresql":
        query = text("SELECT pg_get_serial_sequence(:table, :column)")
        name: str | None = connection.scalar(query, {"table": table.name, "column": keys[0].name})
        return name
    counted = connection.scalar(
        text("SELECT sql LIKE '%AUTOINCREMENT%' FROM sqlite_master WHERE type = 'table' AND name = :name"),
        {"name": table.name},
    )
    return table.name if counted else None


class _Writer:
    """Adds members to a tar; each is written to a temporary file first, since a tar says the size before."""

    def __init__(self, tar: tarfile.TarFile, scratch: Path) -> None:
        self._tar, self._scratch = tar, scratch
        self._members: dict[str, Member] = {}
        self._created_at = 0.0

    def write(self, database: Database, has_artifact: Callable[[str], bool], secrets: Iterable[Path]) -> Backup:
        with database.snapshot() as connection:
            self._created_at = connection.scalars(select(DatabaseNow())).one()
            revision = current_revision(connection)
            if revision is None:
                raise PermanentError(
                    "the database is empty: there is nothing to back up; check OLIVEPRESS_DATABASE_URL"
                )
            metadata = reflected(connection)
            for table in metadata.sorted_tables:
                self._add_lines(f"{TABLES}{table.name}.jsonl", _rows(connection, table))
            sequences = dict(_sequences(connection, metadata))
            references = _references(connection, metadata)
        self._add_lines(ARTIFACTS, (asdict(found) for found in _artifacts(references, has_artifact)))
        for file in secrets:
            content = file.read_bytes()
            self._members[SECRETS + file.name] = Member(0, len(content), hashlib.sha256(content).hexdigest())
            self._add(SECRETS + file.name, len(content), io.BytesIO(content))
        made_by, kind = f"olivepress {olivepress.__version__}", database.engine.dialect.name
        backup = Backup(revision, self._created_at, made_by, kind, sequences, self._members)
        content = (json.dumps(asdict(backup), indent=2) + "\n").encode()
        self._add(CONTENTS, len(content), io.BytesIO(content))
        return backup

    def _add_lines(self, name: str, values: Iterable[Json]) -> None:
        digest, size_bytes, rows = hashlib.sha256(), 0, 0
        with tempfile.TemporaryFile(dir=self._scratch) as spool:
            for value in values:
                line = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
                digest.update(line)
                size_bytes, rows = size_bytes + len(line), rows + 1
                spool.write(line)
            spool.seek(0)
            self._add(name, size_bytes, spool)
        self._members[name] = Member(rows, size_bytes, digest.hexdigest())

    def _add(self, name: str, size_bytes: int, content: IO[bytes]) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = size_bytes, int(self._created_at), 0o600
        self._tar.addfile(info, content)


@contextmanager
def _new_file(target: Path) -> Iterator[IO[bytes]]:
    """A file for its owner's eyes, which has its name only when it is whole and on the disk."""
    unfinished = target.with_name(target.name + ".unfinished")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _rows(connection: Connection, table: Table) -> Iterator[Json]:
    """The rows in the order of their key. JSON is read as text: else its null and NULL would look alike."""
    is_json = {column.name: isinstance(column.type, JSON) for column in table.columns}
    columns = [cast(column, Text).label(column.name) if is_json[column.name] else column for column in table.columns]
    query = select(*columns).order_by(*table.primary_key.columns).execution_options(yield_per=ROWS_AT_A_TIME)
    for row in connection.execute(query).mappings():
        yield {name: json.loads(value) if is_json[name] else value for name, value in row.items() if value is not None}


def _sequences(connection: Connection, metadata: MetaData) -> Iterator[tuple[str, int]]:
    for table in metadata.sorted_tables:
        name = id_sequence(connection, table)
        if name is None:
            continue
        if connection.dialect.name == "postgresql":
            highest = connection.scalar(text(f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {name}"))
        else:
            highest = connection.scalar(text("SELECT seq FROM sqlite_sequence WHERE name = :name"), {"name": name})
        yield table.name, highest or 0


def _references(connection: Connection, metadata: MetaData) -> dict[str, list[str]]:
    """Digest -> columns that have it."""
    found: dict[str, list[str]] = {}
    for table in metadata.sorted_tables:
        for column in table.columns:
            if column.name in REFERENCES:
                query = select(column).where(column.is_not(None)).distinct()
                # A version that was deleted keeps its row for ever, its files only for the grace period.
                if (files_until := table.columns.get("files_until")) is not None:
                    query = query.where(or_(files_until.is_(None), files_until > DatabaseNow()))
                for digest in connection.scalars(query):
                    found.setdefault(digest, []).append(f"{table.name}.{column.name}")
    return found


def _artifacts(references: dict[str, list[str]], has_artifact: Callable[[str], bool]) -> Iterator[Artifact]:
    for digest in sorted(references):
        yield Artifact(digest, has_artifact(digest), sorted(references[digest]))
