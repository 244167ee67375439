"""Queues of workers that are gone are removed from Redis: each worker has one of its own, named by its id."""

import structlog
from redis import Redis
from redis.exceptions import RedisError

from olivepress.database.sessions import Database
from olivepress.database.workers import alive
from olivepress.queues import forget_queues

# A worker that cannot reach the database for a while comes back under the same id.
GONE_AFTER_S = 3600.0
log = structlog.get_logger(__name__)


def sweep_queues(database: Database, redis: Redis) -> None:
    """One look; without Redis there is nothing to remove."""
    with database.read() as session:
        keep = {worker.id for worker in alive(session, GONE_AFTER_S)}
    try:
        removed = forget_queues(redis, keep)
    except RedisError as error:
        log.warning("queues_not_swept", error=str(error))
        return
    if removed:
        log.info("queues_swept", keys=removed)
