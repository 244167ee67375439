"""The schema, step by step: one file a change, named by date and intent."""

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from olivepress.database.sessions import Database
from olivepress.errors import ServiceUnavailable

HEAD, BASE = "head", "base"


def upgrade(database: Database) -> None:
    """Bring the schema up to this release's; does nothing where it is. Of two at once the second waits.

    Raises:
        ServiceUnavailable: the database does not answer, or its schema is newer than this release.
    """
    with database.schema_change() as connection:
        _refuse_newer(connection)
        upgrade_to(connection, HEAD)


def downgrade(database: Database, revision: str = BASE) -> None:
    """Take the schema back to an earlier revision; what only later ones can hold is lost."""
    with database.schema_change() as connection:
        command.downgrade(_config(connection), revision)


def upgrade_to(connection: Connection, revision: str) -> None:
    """Bring the schema up to a revision, in the transaction of the caller (`Database.schema_change`)."""
    command.upgrade(_config(connection), revision)


def current_revision(connection: Connection) -> str | None:
    """Where the schema is; None: nowhere yet."""
    return MigrationContext.configure(connection).get_current_revision()


def newest_revision() -> str:
    """Where this release's schema is."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None, "this release has no migrations"
    return head


def is_known(revision: str) -> bool:
    """Whether this release's schema is at this revision or came by it."""
    try:
        ScriptDirectory.from_config(_config()).get_revision(revision)
    except CommandError:
        return False
    return True


def check(database: Database) -> None:
    """Hold the schema against this release.

    Raises:
        ServiceUnavailable: the schema is older or newer than this release, or the database does not answer.
    """
    with database.snapshot() as connection:
        current = current_revision(connection)
    head = newest_revision()
    if current != head:
        raise ServiceUnavailable(
            f"the database's schema is at '{current or 'nothing'}', this release needs '{head}'; "
            "run `olivepress service migrate` with the newest release"
        )


def _refuse_newer(connection: Connection) -> None:
    current = current_revision(connection)
    if current is not None and not is_known(current):
        raise ServiceUnavailable(
            f"the database's schema is at '{current}', which this release, at '{newest_revision()}', does not know; "
            "run the release that migrated it, or a newer one"
        )


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", "olivepress:database/migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
