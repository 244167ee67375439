"""Whether one service of this host works: what a container's health check asks every half minute, so it is cheap.

service     works when
api         its open health check answers (it says no when the database does not answer)
worker      the database saw a worker of this host lately, and that worker's process lives here
publisher   the same: it is a worker that only publishes
scheduler   the database answers and a scheduler leads; a hung one loses its lease within seconds
flower      it answers; the page that is asked needs no password
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

import httpx

from olivepress.database import views
from olivepress.database import workers as worker_rows
from olivepress.database.sessions import Database, Session
from olivepress.errors import ServiceUnavailable
from olivepress.process_identity import is_running, pid_space
from olivepress.settings import Settings

ANSWER_WITHIN_S = 5.0
# A service that listens on every address is asked on loopback.
LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


class Service(StrEnum):
    """What can be asked."""

    API = "api"
    WORKER = "worker"
    PUBLISHER = "publisher"
    SCHEDULER = "scheduler"
    FLOWER = "flower"


def check(service: Service, settings: Settings) -> str:
    """Ask one service of this host.

    Returns:
        How it is, in words.

    Raises:
        ServiceUnavailable: it does not work; the message says what is wrong and what to do.
    """
    return _CHECKS[service](settings)


def _api(settings: Settings) -> str:
    return _answers("the API", settings.api_host, f"{settings.api_port}/healthz")


def _flower(settings: Settings) -> str:
    return _answers("Flower", settings.flower_host, f"{settings.flower_port}/healthcheck")


def _worker(settings: Settings) -> str:
    return _seen(settings, "worker")


def _publisher(settings: Settings) -> str:
    return _seen(settings, "publisher")


def _seen(settings: Settings, what: str) -> str:
    host = socket.gethostname()
    with _reading(settings) as session:
        of_kind = [row for row in worker_rows.alive(session) if (row.memory_bytes == 0) == (what == "publisher")]
    seen = [row for row in of_kind if row.host == host]
    here = pid_space()
    for row in seen:
        # Containers may share a host's name: a worker in another one is none of this one's.
        if row.pid_space == here and is_running(row.pid, row.pid_started_at):
            return f"{what} {row.id} was seen within {worker_rows.ALIVE_FOR_S:.0f} s"
    others = f"; seen under that name, and not running here: {', '.join(row.id for row in seen)}" if seen else ""
    raise ServiceUnavailable(
        f"the database saw no {what} of {host} within {worker_rows.ALIVE_FOR_S:.0f} s{others}; read the {what}'s log"
    )


def _scheduler(settings: Settings) -> str:
    with _reading(settings) as session:
        lease = views.scheduler_lease(session)
    if lease["alive"]:
        return f"{lease['holder']} leads"
    raise ServiceUnavailable("no scheduler leads, so nothing is dispatched; read the scheduler's log")


@contextmanager
def _reading(settings: Settings) -> Iterator[Session]:
    database = Database(settings.database)
    try:
        with database.read() as session:
            yield session
    finally:
        database.dispose()


def _answers(name: str, host: str, rest: str) -> str:
    address = f"http://{LOOPBACK_OF.get(host, host)}:{rest}"
    try:
        # No proxy of the environment: the service is on this host.
        answer = httpx.get(address, timeout=ANSWER_WITHIN_S, trust_env=False)
    except httpx.HTTPError as error:
        raise ServiceUnavailable(f"{name} does not answer at {address}: {error}; read its log") from error
    if answer.status_code != httpx.codes.OK:
        raise ServiceUnavailable(f"{name} answers {answer.status_code} at {address}: {answer.text[:200]}; read its log")
    return f"{name} answers at {address}"


_CHECKS: dict[Service, Callable[[Settings], str]] = {
    Service.API: _api,
    Service.WORKER: _worker,
    Service.PUBLISHER: _publisher,
    Service.SCHEDULER: _scheduler,
    Service.FLOWER: _flower,
}
