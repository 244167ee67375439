"""The migrated schema and the tables that the code declares are one, forward and back, on both databases."""

import json
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from olivepress.database import migrations
from olivepress.database.sessions import Database
from olivepress.database.tables import Table
from olivepress.errors import PermanentError, ServiceUnavailable
from tests.integration.database_cases import on_both_databases, submit_paths

pytestmark = on_both_databases


@pytest.fixture
def empty(database_url: str) -> Database:
    """A database without any schema."""
    return Database(database_url)


def differences(database: Database) -> list[object]:
    """What autogenerate would put into another migration."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, Table.metadata))


def shape(database: Database) -> dict[str, object]:
    """Indexes with their conditions, unique constraints and foreign keys: autogenerate does not look at all of it."""
    inspector = inspect(database.engine)
    return {
        name: (
            sorted(json.dumps(found, default=str) for found in inspector.get_indexes(name)),
            sorted(json.dumps(found, default=str) for found in inspector.get_unique_constraints(name)),
            sorted(json.dumps(found, default=str) for found in inspector.get_foreign_keys(name)),
        )
        for name in sorted(Table.metadata.tables)
    }


def test_the_migrated_schema_is_what_the_tables_say(database: Database) -> None:
    assert differences(database) == []


def test_the_migrated_indexes_and_constraints_are_those_that_the_tables_make(
    database: Database, database_url: str
) -> None:
    made = Database(database_url)
    Table.metadata.create_all(made.engine)
    assert shape(database) == shape(made)
    made.dispose()


def test_the_schema_goes_forward_and_back_and_forward_again(empty: Database) -> None:
    migrations.upgrade(empty)
    migrations.downgrade(empty)
    assert inspect(empty.engine).get_table_names() == ["alembic_version"]
    migrations.upgrade(empty)
    migrations.check(empty)
    assert differences(empty) == []
    empty.dispose()


def test_migrating_again_changes_nothing(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    migrations.upgrade(database)
    migrations.check(database)
    assert submit_paths(database, "/models/b") > [job]


def test_of_two_that_migrate_at_once_both_find_the_schema_made(empty: Database) -> None:
    start, errors = threading.Barrier(2), list[BaseException]()

    def migrate() -> None:
        start.wait()
        try:
            migrations.upgrade(empty)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    migrations.check(empty)
    empty.dispose()


def test_a_service_does_not_start_on_an_old_schema(empty: Database) -> None:
    with pytest.raises(ServiceUnavailable, match="olivepress service migrate"):
        migrations.check(empty)
    empty.dispose()


def test_an_older_release_neither_migrates_nor_starts_on_a_newer_schema(database: Database) -> None:
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '2031_01_01_add_wings'"))
    with pytest.raises(ServiceUnavailable, match=r"2031_01_01_add_wings.*does not know"):
        migrations.upgrade(database)
    with pytest.raises(ServiceUnavailable, match="2031_01_01_add_wings"):
        migrations.check(database)


def test_a_change_of_the_schema_that_fails_leaves_nothing_behind(database: Database) -> None:
    (job,) = submit_paths(database, "/models/a")
    with pytest.raises(PermanentError, match="a bug"), database.schema_change() as connection:
        connection.exec_driver_sql("ALTER TABLE steps ADD COLUMN half_made INTEGER")
        connection.exec_driver_sql("DELETE FROM attempts")
        raise PermanentError("a bug")
    assert differences(database) == []
    assert submit_paths(database, "/models/b") > [job]


def test_a_table_can_be_rebuilt_while_others_refer_to_it_but_its_rows_must_stay(database: Database) -> None:
    submit_paths(database, "/models/a")
    with database.schema_change() as connection:
        if database.engine.dialect.name == "sqlite":
            # What a batch migration does on SQLite: with foreign keys on it would take the children along.
            connection.exec_driver_sql("CREATE TABLE new_batches AS SELECT * FROM batches")
            connection.exec_driver_sql("DROP TABLE batches")
            connection.exec_driver_sql("ALTER TABLE new_batches RENAME TO batches")
            connection.exec_driver_sql("CREATE UNIQUE INDEX pk ON batches (id)")
        assert connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar() == 1
    with pytest.raises((PermanentError, IntegrityError), match=r"without its row in batches|violates foreign key"):
        with database.schema_change() as connection:
            connection.exec_driver_sql("DELETE FROM batches")
