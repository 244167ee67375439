"""The scheduler service: it ticks when it is rung, at the latest every second."""

import contextlib
import signal
import threading
import time
from typing import Any

import structlog
from redis.client import PubSub
from redis.exceptions import RedisError

from olivepress.database import migrations
from olivepress.database.sessions import Database
from olivepress.errors import ServiceUnavailable
from olivepress.placement import Fairness
from olivepress.queues import RING_CHANNEL, celery_app, redis_client
from olivepress.settings import Settings
from olivepress.store.directory import DirectoryStore
from scheduler.dispatch import dispatch
from scheduler.leader import Leadership
from scheduler.rescue import rescue_expired
from scheduler.stranded import look_after

RESCUE_EVERY_S = 5.0
log = structlog.get_logger(__name__)


def main(settings: Settings) -> None:
    """Run until SIGTERM. SIGINT is left to whoever started us, as a terminal sends it to all."""
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Scheduler(settings, stop).run()


class Scheduler:
    """The ticking loop: lead, rescue, dispatch, wait for the ring."""

    def __init__(self, settings: Settings, stop: threading.Event) -> None:
        self._settings = settings
        self._stop = stop
        self._database = Database(settings.database)
        self._app = celery_app(settings)
        self._redis = redis_client(settings)
        self._leadership = Leadership(self._database)
        self._store = DirectoryStore(settings.store)
        self._fairness = Fairness(settings.weights)
        self._rescued_at = 0.0

    def run(self) -> None:
        """Tick until asked to stop, then let the next leader lead."""
        migrations.check(self._database)
        log.info("scheduler_started")
        bell: PubSub | None = None
        is_leading = False
        while not self._stop.is_set():
            try:
                leads = self._leadership.hold()
                if leads != is_leading:
                    log.info("leading" if leads else "following")
                    is_leading = leads
                if leads:
                    self._tick()
            except ServiceUnavailable as error:
                log.warning("tick_failed", error=str(error))
            bell = self._wait(bell)
        with contextlib.suppress(ServiceUnavailable):
            self._leadership.give_back()
        self._database.dispose()
        log.info("scheduler_stopped")

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._rescued_at >= RESCUE_EVERY_S:
            self._rescued_at = now
            rescue_expired(self._database)
            look_after(self._database, self._store.has, self._settings.unplaceable_after_s)
        dispatch(self._database, self._app, self._fairness, self._settings.signal_again_after_s)

    def _wait(self, bell: PubSub | None) -> PubSub | None:
        """Until rung or the polling interval is over. Without Redis it polls; None: listen anew next time."""
        deadline = time.monotonic() + self._settings.dispatch_every_s
        try:
            if bell is None:
                bell = PubSub(self._redis.connection_pool, ignore_subscribe_messages=True)
                bell.subscribe(RING_CHANNEL)
            message: Any = None
            while message is None and not self._stop.is_set() and (left := deadline - time.monotonic()) > 0:
                message = bell.get_message(timeout=min(left, 0.2))
            # One tick serves all rings that came meanwhile.
            while message is not None:
                message = bell.get_message(timeout=0)
        except (RedisError, OSError) as error:
            log.warning("ring_unreachable", error=str(error))
            self._stop.wait(max(0.0, deadline - time.monotonic()))
            return None
        return bell
