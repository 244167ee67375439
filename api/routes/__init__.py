"""The routes, one file per resource, and the parts of the stack that they are given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request

from olivepress.database.sessions import Database
from olivepress.settings import Settings
from olivepress.store import Store


@dataclass(frozen=True)
class Parts:
    """What a route works with."""

    settings: Settings
    admin_key: str
    database: Database
    store: Store
    ring: Callable[[], None]
    """Wakes the scheduler; called after a commit."""


def parts_of(request: Request) -> Parts:
    """The parts that `create_app` was given."""
    parts: Parts = request.app.state.parts
    return parts


Stack = Annotated[Parts, Depends(parts_of)]
Team = Annotated[
    str, Query(pattern="^[a-z0-9][a-z0-9_-]{0,62}$", description="Whose batches, jobs or models.", examples=["default"])
]
# PostgreSQL takes no NUL in a text; names have none of the characters that this leaves out.
PRINTABLE = "^[!-~]+$"
DEFAULT_TEAM = "default"
MAX_ID = 2**63 - 1
BeforeId = Annotated[int | None, Query(ge=1, le=MAX_ID, description="Only older ones than this id: the next page.")]
