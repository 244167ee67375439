"""Many rows in one statement and one parameter: a JSON array that the database takes apart again.

Ten thousand rows of twenty columns are else two hundred thousand parameters, and take seconds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import JSON, ColumnElement, Integer, String, cast, func, literal, type_coerce
from sqlalchemy.orm import Session

from olivepress.database.table import clean

Value = str | int | None


@dataclass(frozen=True)
class ManyRows:
    """Rows as a FROM clause has them."""

    order: ColumnElement[int]
    """Ascends as the rows were given."""
    _row: ColumnElement[JSON]

    def text(self, position: int) -> ColumnElement[str]:
        """A column of texts."""
        value: ColumnElement[str] = type_coerce(self._row, JSON)[position].as_string()
        return value

    def number(self, position: int) -> ColumnElement[int]:
        """A column of whole numbers."""
        return cast(self.text(position), Integer)


def many_rows(session: Session, rows: Sequence[Sequence[Value]]) -> ManyRows:
    """These rows, to be selected from."""
    cleaned = [[clean(value) if isinstance(value, str) else value for value in row] for row in rows]
    text = literal(json.dumps(cleaned), String)
    if session.get_bind().dialect.name == "postgresql":
        array = func.json_array_elements(cast(text, JSON)).table_valued("value", with_ordinality="number")
        derived = array.render_derived()
        return ManyRows(derived.c.number, derived.c.value)
    found = func.json_each(text).table_valued("key", "value")
    return ManyRows(found.c.key, found.c.value)
