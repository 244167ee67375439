"""INSERT … ON CONFLICT in the words of the database that a session talks to."""

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from olivepress.database.tables import Table


def upsert(session: Session, table: type[Table]) -> postgresql.Insert | sqlite.Insert:
    """An INSERT into this table that knows `on_conflict_do_update` and `on_conflict_do_nothing`."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
