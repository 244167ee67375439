"""The base of all tables: how constraints are named, how JSON and text are stored."""

import re
from typing import Any, ClassVar

from sqlalchemy import JSON, Dialect, MetaData, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase

Json = dict[str, Any]
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def clean(text: str) -> str:
    """A text as `CleanText` stores it."""
    return _UNSTORABLE.sub("\ufffd", text)


def clean_values(value: Any) -> Any:
    """JSON values with every text in them as `clean` leaves it: models answer anything."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): clean_values(item) for key, item in value.items()}
    return [clean_values(item) for item in value] if isinstance(value, list) else value


class CleanText(TypeDecorator[str]):
    """Text without what PostgreSQL cannot hold: a NUL and half of a surrogate pair become U+FFFD.

    Tools print anything; an attempt must be ended whatever its log says.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """The text as it is stored."""
        return clean(value) if value is not None else None


class Table(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {Json: JSON, list[Any]: JSON, str: CleanText}
