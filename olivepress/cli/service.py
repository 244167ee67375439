"""`olivepress service …`: one service in the foreground, as a container or a process manager runs it."""

import importlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from pydantic import ValidationError

from olivepress.errors import ServiceUnavailable
from olivepress.manifest import describe
from olivepress.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    help="Run one service in the foreground; `olivepress up` runs all of them.\n\n"
    "Settings come from OLIVEPRESS_* variables, such as OLIVEPRESS_DATABASE_URL and OLIVEPRESS_REDIS_URL.\n\n"
    "Example: olivepress service worker --slots 2 --memory 16GB",
)


@app.command()
def api() -> None:
    """Serve the REST API."""
    _run("api.serve")


@app.command()
def scheduler() -> None:
    """Dispatch waiting steps and rescue lost ones; of several, one leads."""
    _run("scheduler.app")


@app.command()
def worker(
    slots: Annotated[int | None, typer.Option(min=1, max=64, help="Steps that run at a time.")] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What all steps together may use, such as 16GB.")
    ] = None,
    pools: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Labels that jobs can ask for, separated by commas.")
    ] = None,
) -> None:
    """Run steps. Each may use memory / slots; one that needs more goes to a larger worker.

    Without options: OLIVEPRESS_SLOTS, OLIVEPRESS_MEMORY and OLIVEPRESS_POOLS; a slot for every two cores, the
    machine's memory less a reserve, and the pool "default".

    Example: olivepress service worker --slots 1 --memory 64GB --pools default,large
    """
    given = {"slots": slots, "memory": memory, "pools": pools}
    _run("workers.app", {name: value for name, value in given.items() if value is not None})


@app.command()
def publisher() -> None:
    """Run the steps that publish, and no other: a worker that has the signing key and runs nobody's code beside it.

    It needs the database, Redis, the store and OLIVEPRESS_SIGNING_KEY_FILE; no checkpoint, no toolchain, little memory.
    Once it has started, no worker without a key publishes.

    Example: OLIVEPRESS_SIGNING_KEY_FILE=/etc/olivepress/signing-key.pem olivepress service publisher
    """
    _run("workers.app", {"publish_only": True})


@app.command()
def flower() -> None:
    """Serve the Flower monitor on loopback, behind OLIVEPRESS_FLOWER_PASSWORD."""
    from olivepress.services.flower import serve

    settings = Settings()
    _configure_logging(settings)
    serve(settings)


@app.command()
def migrate() -> None:
    """Bring the database's schema up to this release's."""
    from olivepress.database.migrations import upgrade
    from olivepress.database.sessions import Database

    upgrade(Database(Settings().database))


@app.command()
def health(service: Annotated[str, typer.Argument(metavar="api|worker|publisher|scheduler|flower")]) -> None:
    """Say whether a service of this host works; exit code 1 if not. What a container's health check runs."""
    from olivepress.services.health import Service, check

    if service not in [*Service]:
        raise typer.BadParameter(f"'{service}' has no health check; ask {', '.join(Service)}")
    try:
        typer.echo(check(Service(service), Settings()))
    except ServiceUnavailable as error:
        typer.echo(f"{service}: {error}", err=True)
        raise typer.Exit(1) from None


def _run(module: str, options: dict[str, Any] | None = None) -> None:
    """The `main(settings)` of a service, found beside the library in a checkout and inside it in a wheel."""
    packaged = Path(__file__).resolve().parent.parent / "_services"
    if packaged.is_dir():
        sys.path.insert(0, str(packaged))
        # Children of a forkserver find the same modules by this.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(packaged), os.environ.get("PYTHONPATH")]))
    try:
        settings = Settings(**options or {})
    except ValidationError as error:
        raise typer.BadParameter(describe(error)) from None
    _configure_logging(settings)
    # Until the service has its own handler: a stop while it starts is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    importlib.import_module(module).main(settings)


def _configure_logging(settings: Settings) -> None:
    """Events as lines on stderr: for people, or JSON for a log collector. Libraries' own lines go the same way."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if settings.log_format == "text":
        renderer = structlog.dev.ConsoleRenderer(
            colors=False, pad_event_to=20, exception_formatter=structlog.dev.plain_traceback
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("httpx", "alembic", "celery", "kombu", "uvicorn.access", "tornado.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It warns of every question that a worker which is just starting does not answer.
    logging.getLogger("flower.inspector").setLevel(logging.ERROR)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
