"""Flower over the real services: who works and what runs, in words that people understand, behind a password.

The toolchain is a double (tests/doubles): what is shown does not depend on it.
"""

import base64
import json
import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from olivepress.client import Client
from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database
from olivepress.jobs import FINAL_JOB_STATES, StepKind
from olivepress.manifest import parse_manifest
from olivepress.queues import task_name
from olivepress.services.flower import USER
from tests.doubles.orders import write_checkpoint
from tests.doubles.services import ADMIN_KEY, Service, double, environment, product, wait_for_api
from tests.redis_server import RedisServer, free_port, redis_server
from tests.stack_cases import wait_until

pytestmark = pytest.mark.timeout(180)
PASSWORD = "flower-password"
CHECKPOINTS = ("support-en", "legal")
POOLS = ("small", "large")
SEEN_WITHIN_S = 60.0


class Messages(threading.Thread):
    """Every message that a queue of steps gets, as Redis sees it come."""

    def __init__(self, redis: RedisServer) -> None:
        super().__init__(name="messages", daemon=True)
        self.found: "queue.SimpleQueue[dict[str, Any]]" = queue.SimpleQueue()
        self.listens = threading.Event()
        self._redis = Redis.from_url(redis.url)

    def run(self) -> None:
        with closing(self._redis) as client, client.monitor() as monitor:
            self.listens.set()
            for command in monitor.listen():
                # The end of the server ends the listening.
                words = command["command"].split(" ", 2)
                if words[0] == "LPUSH" and words[1].startswith("olivepress."):
                    self.found.put(json.loads(words[2]))


class Stack:
    """What a test looks at."""

    def __init__(self, flower_url: str, client: Client, redis: RedisServer) -> None:
        self.flower_url, self.client, self.redis = flower_url, client, redis

    def ask(self, path: str) -> Any:
        """Flower's API with the administrator's password."""
        answer = httpx.get(f"{self.flower_url}{path}", auth=(USER, PASSWORD), timeout=10, trust_env=False)
        answer.raise_for_status()
        return answer.json()

    def run_batch(self, root: Path) -> dict[str, int]:
        """Submit the checkpoints, wait for their end; gives each one's job."""
        manifest = {"checkpoints": [{"path": str(root / name)} for name in CHECKPOINTS]}
        batch_id = self.client.submit(parse_manifest(manifest))["id"]
        wait_until(lambda: self.client.batch(batch_id)["state"] in FINAL_JOB_STATES, SEEN_WITHIN_S)
        batch = self.client.batch(batch_id)
        assert batch["state"] == "succeeded", batch
        return {job["name"]: job["id"] for job in batch["jobs"]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints."""
    directory = tmp_path_factory.mktemp("checkpoints")
    for name in CHECKPOINTS:
        write_checkpoint(directory / name, name)
    return directory


@pytest.fixture(scope="module")
def stack(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    data_dir = tmp_path_factory.mktemp("flower")
    database_url = f"sqlite:///{data_dir / 'olivepress.sqlite'}"
    with closing_database(database_url) as database:
        upgrade(database)
    api_port, flower_port = free_port(), free_port()
    with ExitStack() as closing_all:
        redis = closing_all.enter_context(redis_server(data_dir / "redis"))
        variables = environment(
            data_dir,
            database_url,
            redis.url,
            root,
            api_port=str(api_port),
            flower_port=str(flower_port),
            flower_password=PASSWORD,
            slots="1",
        )

        def run(name: str, command: list[str], **more: str) -> Service:
            service = Service(name, command, variables | more, data_dir / f"{name}.log")
            service.start()
            closing_all.callback(service.stop)
            return service

        run("flower", product("flower"))
        api = run("api", product("api"))
        run("scheduler", product("scheduler"))
        for pool in POOLS:
            run(f"worker-{pool}", double("worker"), OLIVEPRESS_POOLS=pool)
        wait_for_api(f"http://127.0.0.1:{api_port}", api)
        client = closing_all.enter_context(Client(f"http://127.0.0.1:{api_port}", ADMIN_KEY))
        stack = Stack(f"http://127.0.0.1:{flower_port}", client, redis)
        wait_until(lambda: answers(stack) and len(living(stack)) == len(POOLS), SEEN_WITHIN_S)
        yield stack
