"""Running steps whose lease ran out go back to the queue, or to dead after their last attempt."""

import structlog

from olivepress.database.sessions import Database
from olivepress.database.steps import rescue

log = structlog.get_logger(__name__)


def rescue_expired(database: Database) -> int:
    """Returns how many steps were taken from workers that are gone."""
    with database.write() as session:
        taken = rescue(session)
    if taken:
        log.warning("rescued", steps=taken)
    return len(taken)
