"""The schema, step by step: one file a change, named by date and intent."""

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from olivepress.database.sessions import Database
from olivepress.errors import ServiceUnavailable


def upgrade(database: Database) -> None:
    """Bring the schema up to this release's; does nothing where it is."""
    config = _config()
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def check(database: Database) -> None:
    """Hold the schema against this release.

    Raises:
        ServiceUnavailable: the schema is older or newer than this release.
    """
    with database.engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if current != head:
        raise ServiceUnavailable(
            f"the database's schema is at '{current or 'nothing'}', this release needs '{head}'; "
            "run `olivepress service migrate` with the newest release"
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "olivepress:database/migrations")
    config.set_main_option("path_separator", "os")
    return config
