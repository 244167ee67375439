"""A log that is followed, as server-sent events. Source of the format: the HTML standard, "Server-sent events"."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from olivepress.database.attempt_logs import LogFollower
from olivepress.database.sessions import Database
from olivepress.database.tables import Json
from olivepress.errors import ServiceUnavailable

LOOK_EVERY_S = 1.0
# So that neither side, nor a proxy between them, takes a quiet connection for a dead one.
COMMENT_EVERY_S = 10.0
COMMENT = ": nothing new\n\n"


def followed_log(database: Database, follower: LogFollower) -> StreamingResponse:
    """What the follower finds, until all is over or the client goes.

    Raises:
        NotFound: there is no such job.
    """
    # Here, while an error still has a status of its own.
    first = _look(database, follower)
    # no-transform and X-Accel-Buffering: proxies hand on each event when it comes.
    headers = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(database, follower, first), media_type="text/event-stream", headers=headers)


async def _events(database: Database, follower: LogFollower, first: list[Json]) -> AsyncIterator[str]:
    events, told_at = first, time.monotonic()
    while True:
        for event in events:
            yield f"event: {event['event']}\ndata: {json.dumps(event)}\n\n"
        if follower.is_over:
            return
        now = time.monotonic()
        if events:
            told_at = now
        elif now - told_at >= COMMENT_EVERY_S:
            told_at = now
            yield COMMENT
        await asyncio.sleep(LOOK_EVERY_S)
        events = await run_in_threadpool(_look_again, database, follower)


def _look(database: Database, follower: LogFollower) -> list[Json]:
    with database.read() as session:
        return follower.look(session)


def _look_again(database: Database, follower: LogFollower) -> list[Json]:
    try:
        return _look(database, follower)
    except ServiceUnavailable:
        # It comes back, or the client loses patience.
        return []
