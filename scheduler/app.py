"""The scheduler service: it ticks when it is rung, at the latest every second."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from olivepress.store import open_store
from scheduler.dispatch import dispatch
from scheduler.leader import Leadership
from scheduler.queues import sweep_queues
from scheduler.recertify import Recertifier
from scheduler.rescue import rescue_expired
from scheduler.retention import Retention
from scheduler.store_checks import StoreChecks
from scheduler.stranded import look_after

log = structlog.get_logger(__name__)


def main(settings: Settings) -> None:
    """Run until SIGTERM. SIGINT is left to whoever started us, as a terminal sends it to all."""
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Scheduler(settings, stop).run()


@dataclass
class Duty:
    """Something that the leader does now and then."""

    name: str
    every_s: float
    run: Callable[[], object]
    done_at: float = -math.inf


class Scheduler:
    """The ticking loop: lead, do what is due, wait for the ring."""

    def __init__(self, settings: Settings, stop: threading.Event) -> None:
        self._settings = settings
        self._stop = stop
        self._database = Database(settings.database)
        self._app = celery_app(settings)
        self._redis = redis_client(settings)
        self._leadership = Leadership(self._database)
        self._retention = Retention(settings, self._database)
        self._store_checks = StoreChecks(settings, self._database)
        self._duties = self._make_duties(settings)

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
        self._retention.stop()
        self._store_checks.stop()
        with contextlib.suppress(ServiceUnavailable):
            self._leadership.give_back()
        self._database.dispose()
        log.info("scheduler_stopped")

    def _make_duties(self, settings: Settings) -> list[Duty]:
        database, store, fairness = self._database, open_store(settings), Fairness(settings.weights)
        recertifier = Recertifier(database, store.has)
        return [
            Duty("rescue", 5.0, lambda: rescue_expired(database)),
            Duty("stranded", 5.0, lambda: look_after(database, store.has, settings.unplaceable_after_s)),
            Duty("dispatch", 0.0, lambda: dispatch(database, self._app, fairness, settings.signal_again_after_s)),
            Duty("queues", 60.0, lambda: sweep_queues(database, self._redis)),
            Duty("retention", 1.0, self._retention.run_when_due),
            Duty("store_check", 1.0, self._store_checks.run_when_due),
            *([Duty("recertify", 30.0, recertifier.run)] if settings.recertify == "on" else []),
        ]

    def _tick(self) -> None:
        for duty in self._duties:
            now = time.monotonic()
            if now - duty.done_at < duty.every_s:
                continue
            duty.done_at = now
            try:
                duty.run()
            except ServiceUnavailable:
                raise
            except Exception:  # The edge of the loop: what breaks one duty must not stop the others.
                log.exception("duty_broke", duty=duty.name)

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
