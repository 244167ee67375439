"""Versions that an alias points to are certified again, a few at a time, once the runtime of all workers is another."""

import structlog

from olivepress.database.sessions import Database
from olivepress.database.unblocking import HasArtifact
from olivepress.recertification import start_due

log = structlog.get_logger(__name__)


class Recertifier:
    """Looks now and then what is due; all that it must not forget is in the database."""

    def __init__(self, database: Database, has_artifact: HasArtifact) -> None:
        self._database = database
        self._has_artifact = has_artifact
        self._told: list[str] = []

    def run(self) -> int:
        """One look; nothing is written where nothing is due.

        Returns:
            How many jobs were started.
        """
        started = start_due(self._database, self._has_artifact)
        if started.jobs:
            log.info("recertifying", jobs=started.jobs)
        # What cannot be started cannot with every look; once is enough to say so.
        if started.problems and started.problems != self._told:
            log.warning("not_recertified", problems=started.problems)
        self._told = started.problems
        return len(started.jobs)
