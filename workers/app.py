"""The worker service: Celery with a thread a slot, a warm forkserver beside it."""

import contextlib
import signal
import threading
import time
import warnings
from typing import Any

import structlog
from celery.platforms import SecurityWarning
from celery.signals import setup_logging, worker_shutting_down

from olivepress.database import migrations
from olivepress.database import workers as worker_rows
from olivepress.database.sessions import Database
from olivepress.database.steps import rescue
from olivepress.database.workers import WorkerFacts
from olivepress.errors import OlivepressError, ServiceUnavailable
from olivepress.evidence.signing import SigningKey
from olivepress.process_identity import is_running
from olivepress.queues import Ring, celery_app, queue_name, redis_client
from olivepress.settings import Settings
from olivepress.store import open_store
from workers import host, memory_allowance, secrets, tasks
from workers.child import StepCode
from workers.child_process import describe_toolchain, start_forkserver
from workers.runtime import Runtime, watch_database
from workers.workspace import sweep_until, worker_directory

log = structlog.get_logger(__name__)


def serve(settings: Settings, code: StepCode | None = None) -> None:
    """Run the worker until it is asked to end (SIGTERM); running steps get the grace, then go back to the queue.

    Args:
        code: where the steps' code lies; the real toolchain unless a test says otherwise.
    """
    code = code or StepCode()
    if not settings.publish_only:
        with secrets.hidden():
            start_forkserver(code)
    if settings.signing_key_file is not None:
        # Rather now than when the first model is to be published.
        SigningKey.load(settings.signing_key_file)
    facts = host.describe(settings)
    database = Database(settings.database)
    migrations.check(database)
    _release_the_dead(database, facts)
    with worker_directory(settings.workspaces, facts.id) as workspaces:
        offer = host.offer_of(facts)
        runtime = Runtime(
            settings=settings,
            database=database,
            store=open_store(settings),
            ring=Ring(redis_client(settings)),
            offer=offer,
            workspaces=workspaces,
            facts=facts,
            code=code,
            memory=None if settings.publish_only else memory_allowance.choose(offer.allowance_bytes),
        )
        # The store's client has read those of the bucket now, and nobody else reads any.
        secrets.forget()
        with database.write() as session:
            host.register(session, settings, facts)
        log.info(
            "publisher_started" if settings.publish_only else "worker_started",
            worker_id=facts.id,
            slots=facts.slots,
            pools=facts.pools,
            signing_key=facts.signing_key,
        )
        stop = threading.Event()
        threads = [
            threading.Thread(target=watch_database, args=(runtime, stop), name="watch-database"),
            threading.Thread(target=sweep_until, args=(stop, settings.workspaces, workspaces), name="sweep-workspaces"),
        ]
        if not settings.publish_only:
            threads.append(threading.Thread(target=_warm_up, args=(runtime,), name="warm-up", daemon=True))
        for thread in threads:
            thread.start()
        try:
            _consume(settings, runtime, facts)
        finally:
            stop.set()
            for thread in threads:
                if not thread.daemon:
                    thread.join()
            # Without the database it is taken for lost instead, half a minute later.
            with contextlib.suppress(ServiceUnavailable), database.write() as session:
                worker_rows.stopped(session, facts.id)
            database.dispose()
            log.info("worker_stopped", worker_id=facts.id)


def _consume(settings: Settings, runtime: Runtime, facts: WorkerFacts) -> None:
    app = celery_app(settings)
    tasks.register(app, runtime)

    def announce(**_: Any) -> None:
        runtime.shutdown.set()

    def leave_logging_alone(**_: Any) -> None:
        """With a receiver of this signal Celery configures no logging of its own."""

    worker_shutting_down.connect(announce, weak=False)
    setup_logging.connect(leave_logging_alone, weak=False)
    # It warns of root because of pickle; only JSON is accepted here, and containers run as root.
    warnings.simplefilter("ignore", SecurityWarning)
    worker = app.Worker(
        pool="threads",
        concurrency=settings.slots,
        queues=[queue_name(facts.id)],
        # What Flower shows; several workers of one host need names of their own.
        hostname=f"{facts.pools[0]}-{facts.pid}@{facts.host}",
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    worker.start()


def _warm_up(runtime: Runtime) -> None:
    """Wait for the forkserver's imports and note what the toolchain can build."""
    started = time.monotonic()
    try:
        architectures = describe_toolchain(runtime.code)
        with runtime.database.write() as session:
            worker_rows.warmed(session, runtime.offer.worker_id, architectures)
    except EOFError:
        log.error("toolchain_broken", hint="the lines above say which import failed; see `olivepress doctor`")
    except OlivepressError as error:
        log.warning("warm_up_not_noted", error=str(error))
    else:
        log.info("worker_warm", seconds=round(time.monotonic() - started, 1), architectures=len(architectures))


def _release_the_dead(database: Database, facts: WorkerFacts) -> None:
    """Workers of this host that were killed give their steps back now, not when the lease runs out.

    Their children died with them (olivepress.lifetime), and the fence voids whatever might come late.
    """
    with database.write() as session:
        known = worker_rows.on_host(session, facts.host, facts.pid_space)
        dead = [row for row in known if not is_running(row.pid, row.pid_started_at)]
        if not dead:
            return
        taken = rescue(session, [row.id for row in dead])
        for row in dead:
            worker_rows.stopped(session, row.id)
    log.info("dead_workers_released", workers=len(dead), steps=len(taken))


def main(settings: Settings) -> None:
    """Entry of `olivepress service worker`; SIGINT is left to whoever started us, as a terminal sends it to all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(settings)
