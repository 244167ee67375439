"""Steps that no living worker could take are given another key, or say so and fail at last."""

import structlog

from olivepress.database.sessions import Database
from olivepress.database.stranded import look_after_stranded
from olivepress.database.unblocking import HasArtifact

log = structlog.get_logger(__name__)


def look_after(database: Database, has_artifact: HasArtifact, fail_after_s: float) -> None:
    """One look at the waiting steps."""
    with database.write() as session:
        failed = look_after_stranded(session, has_artifact, fail_after_s)
    if failed:
        log.warning("failed_for_want_of_a_worker", steps=failed)
