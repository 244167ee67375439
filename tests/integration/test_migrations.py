"""The migrated schema and the tables that the code declares are one."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from olivepress.database import migrations
from olivepress.database.sessions import Database
from olivepress.database.tables import Table
from olivepress.errors import ServiceUnavailable
from tests.integration.database_cases import on_both_databases

pytestmark = on_both_databases


def test_the_migrated_schema_is_what_the_tables_say(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []


def test_migrating_again_changes_nothing(database: Database) -> None:
    migrations.upgrade(database)
    migrations.check(database)


def test_a_service_does_not_start_on_an_old_schema(database_url: str) -> None:
    database = Database(database_url)
    with pytest.raises(ServiceUnavailable, match="olivepress service migrate"):
        migrations.check(database)
    database.dispose()
