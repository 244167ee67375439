"""Versions that an alias points to are certified again, a few at a time, once the runtime of all workers is another."""

import structlog

from olivepress.database.sessions import Database
from olivepress.database.unblocking import HasArtifact
from olivepress.recertification import start_due

log = structlog.get_logger(__name__)


def recertify(database: Database, has_artifact: HasArtifact) -> int:
    """One look; nothing is written where nothing is due.

    Returns:
        How many jobs were started.
    """
    started = start_due(database, has_artifact)
    if started.jobs:
        log.info("recertifying", jobs=started.jobs)
    if started.problems:
        log.warning("not_recertified", problems=started.problems)
    return len(started.jobs)
