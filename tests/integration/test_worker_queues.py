"""What Redis keeps of the workers' queues, on a real Redis."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from olivepress.database import workers
from olivepress.database.sessions import Database
from olivepress.jobs import StepId, StepKind
from olivepress.queues import BINDING_PREFIXES, celery_app, queue_name, redis_client, send
from olivepress.settings import Settings
from scheduler.queues import sweep_queues
from tests.integration.api_cases import start_worker
from tests.redis_server import redis_server


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with redis_server(tmp_path / "redis") as server:
        yield Settings(data_dir=tmp_path, redis_url=server.url)  # type: ignore[arg-type]


def test_the_queues_of_workers_that_are_gone_are_removed_and_those_of_the_living_stay(
    database: Database, settings: Settings
) -> None:
    app, redis = celery_app(settings), redis_client(settings)
    for number, worker_id in enumerate(("living", "stopped", "forgotten")):
        send(app, StepKind.CONVERT, StepId(number), worker_id, "a description")
    app.close()
    start_worker(database, "living")
    start_worker(database, "stopped")
    with database.write() as session:
        workers.stopped(session, "stopped")
    redis.set("somebody-elses", "key")

    sweep_queues(database, redis)

    assert {key.decode() for key in redis.scan_iter("*")} == {
        "somebody-elses",
        queue_name("living"),
        *(prefix + queue_name("living") for prefix in BINDING_PREFIXES),
    }
    redis.connection_pool.disconnect()


def test_without_redis_the_sweep_gives_up_quietly(database: Database, tmp_path: Path) -> None:
    sweep_queues(database, Redis(unix_socket_path=str(tmp_path / "nobody.sock")))
