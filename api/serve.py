"""The API service: the application under uvicorn until SIGTERM."""

import signal
import threading

import uvicorn

from api.app import create_app
from olivepress.database import migrations
from olivepress.database.sessions import Database
from olivepress.queues import Ring, redis_client
from olivepress.settings import Settings
from olivepress.store import open_store


def main(settings: Settings) -> None:
    """Serve. SIGINT is left to whoever started us, as a terminal sends it to all."""
    database = Database(settings.database)
    migrations.check(database)
    app = create_app(settings, database, open_store(settings), Ring(redis_client(settings)))
    config = uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    # In a thread uvicorn leaves the signals to us.
    thread = threading.Thread(target=server.run, name="uvicorn")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
    thread.start()
    thread.join()
    database.dispose()
