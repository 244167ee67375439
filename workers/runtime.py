"""What all attempts of one worker share, and the thread that keeps its view of the database fresh."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from olivepress.database.cancelling import cancelled_steps
from olivepress.database.sessions import Database
from olivepress.database.unblocking import Offer
from olivepress.database.workers import SEEN_EVERY_S, WorkerFacts
from olivepress.errors import ServiceUnavailable
from olivepress.queues import Ring
from olivepress.settings import Settings
from olivepress.store import Store
from workers import host
from workers.child import StepCode
from workers.memory_allowance import MemoryAllowance
from workers.watchdog import Watchdog

POLL_CANCELLED_EVERY_S = 1.0
log = structlog.get_logger(__name__)


@dataclass
class Runtime:
    """The worker's connections, what it offers, and the flags that its attempts look at."""

    settings: Settings
    database: Database
    store: Store
    ring: Ring
    offer: Offer
    workspaces: Path
    facts: WorkerFacts | None = None
    """What the worker registered with, should the database forget it."""
    code: StepCode = field(default_factory=StepCode)
    shutdown: threading.Event = field(default_factory=threading.Event)
    cancelled: set[int] = field(default_factory=set)
    """Ids of running steps whose job somebody cancelled; replaced, never changed, by `watch_database`."""
    memory: MemoryAllowance | None = None
    """What each step may use; unless given, the offer's allowance, held by looking."""
    watchdog: Watchdog = field(default_factory=Watchdog)

    def __post_init__(self) -> None:
        self.memory = self.memory or MemoryAllowance(self.offer.allowance_bytes)


def watch_database(runtime: Runtime, stop: threading.Event) -> None:
    """Poll cancel flags every second, one query for all attempts, and say now and then that this worker lives."""
    beats = 0
    while not stop.wait(POLL_CANCELLED_EVERY_S):
        try:
            with runtime.database.read() as session:
                runtime.cancelled = cancelled_steps(session, runtime.offer.worker_id)
            if beats % int(SEEN_EVERY_S / POLL_CANCELLED_EVERY_S) == 0:
                with runtime.database.write() as session:
                    is_known = host.report(session, runtime.settings, runtime.offer.worker_id)
                    if not is_known and runtime.facts is not None:
                        host.register(session, runtime.settings, runtime.facts)
                        log.warning("registered_again", worker_id=runtime.offer.worker_id)
        except ServiceUnavailable:
            # An outage is the attempts' business: they end their own children when it lasts too long.
            pass
        except Exception:  # The edge of the thread: without it nobody sends this worker anything any more.
            log.exception("watch_broke")
        beats += 1
