"""Flower over the real services: who works and what runs, in words that people understand, behind a password.

The toolchain is a double (tests/doubles): what is shown does not depend on it.
"""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.exceptions import RedisError
from sqlalchemy import select

from olivepress.client import Client
from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database
from olivepress.database.tables import StepRow
from olivepress.jobs import FINAL_JOB_STATES, StepKind
from olivepress.manifest import parse_manifest
from olivepress.queues import task_name
from olivepress.services.flower import USER
from tests.doubles.orders import write_checkpoint
from tests.doubles.services import ADMIN_KEY, Service, double, environment, product, wait_for_api
from tests.integration.database_cases import DEFAULT_STEPS
from tests.redis_server import RedisServer, free_port, redis_server
from tests.stack_cases import wait_until

pytestmark = pytest.mark.timeout(180)
PASSWORD = "flower-password"
CHECKPOINTS = ("support-en", "legal")
COLUMNS = ["Name", "args", "State", "Worker", "Received", "Started", "Runtime"]
POOLS = ("small", "large")
SEEN_WITHIN_S = 60.0


class Messages(threading.Thread):
    """Every message that the queue of a worker gets, as Redis sees it come."""

    def __init__(self, redis: RedisServer) -> None:
        super().__init__(name="messages", daemon=True)
        self.found: list[dict[str, Any]] = []
        self._redis = redis.client()
        self._monitor = self._redis.monitor()
        # From its answer on, nothing is missed.
        self._monitor.__enter__()

    def run(self) -> None:
        # Closing the connection ends the listening.
        with suppress(RedisError, OSError, ValueError):
            for command in self._monitor.listen():
                name, _, rest = command["command"].partition(" ")
                key, _, value = rest.partition(" ")
                if name == "LPUSH" and key.startswith("olivepress."):
                    self.found.append(json.loads(value))

    def close(self) -> None:
        """Stop listening."""
        self._monitor.connection.disconnect()
        self.join()
        self._redis.close()


@contextmanager
def messages_of(redis: RedisServer) -> Iterator[list[dict[str, Any]]]:
    """What is sent to workers meanwhile."""
    messages = Messages(redis)
    messages.start()
    try:
        yield messages.found
    finally:
        messages.close()


@dataclass(frozen=True)
class Batch:
    """What was run: each checkpoint's job, and the messages that workers were sent for it."""

    jobs: dict[str, int]
    messages: list[dict[str, Any]]


@dataclass(frozen=True)
class Stack:
    """What a test looks at."""

    flower_url: str
    client: Client
    redis: RedisServer
    database: Database

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
        write_checkpoint(directory / name, seed=CHECKPOINTS.index(name))
    return directory


@pytest.fixture(scope="module")
def stack(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    data_dir = tmp_path_factory.mktemp("flower")
    database_url = f"sqlite:///{data_dir / 'olivepress.sqlite'}"
    database = Database(database_url)
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
        stack = Stack(f"http://127.0.0.1:{flower_port}", client, redis, database)
        # Flower says nothing of what happened before it listened.
        wait_until(lambda: is_up(stack) and len(stack.ask("/api/workers?refresh=1")) == len(POOLS), SEEN_WITHIN_S)
        yield stack
        database.dispose()


@pytest.fixture(scope="module")
def batch(stack: Stack, root: Path) -> Batch:
    """Submitted, watched and ended."""
    with messages_of(stack.redis) as messages:
        jobs = stack.run_batch(root)
    return Batch(jobs, messages)


def is_up(stack: Stack) -> bool:
    try:
        return httpx.get(f"{stack.flower_url}/healthcheck", timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("path", ["/", "/tasks", "/api/workers", "/api/tasks", "/api/task/info/1"])
@pytest.mark.parametrize("credentials", [None, (USER, "a-guess"), ("guest", PASSWORD)])
def test_nothing_is_shown_without_the_password(stack: Stack, path: str, credentials: tuple[str, str] | None) -> None:
    answer = httpx.get(f"{stack.flower_url}{path}", auth=credentials, timeout=10, trust_env=False)
    assert answer.status_code == httpx.codes.UNAUTHORIZED
    assert "olivepress." not in answer.text


def test_every_worker_is_shown_by_its_pool_and_host(stack: Stack) -> None:
    shown = stack.ask("/api/workers?refresh=1")
    workers = stack.client.workers()
    assert len(shown) == len(workers) == len(POOLS)
    for worker in workers:
        _, pid, _ = worker["id"].rsplit("-", 2)
        info = shown[f"{worker['pools'][0]}-{pid}@{worker['host']}"]
        assert {task_name(kind) for kind in StepKind} <= set(info["registered"])
        assert [entry["name"] for entry in info["active_queues"]] == [f"olivepress.{worker['id']}"]


def test_every_task_is_shown_as_what_it_does_to_which_checkpoint_by_which_recipe(stack: Stack, batch: Batch) -> None:
    expected = {
        (task_name(kind), f"{name}, cpu-int4, job {job_id}")
        for name, job_id in batch.jobs.items()
        for kind in DEFAULT_STEPS
    }

    def shown() -> set[tuple[str, str]]:
        tasks = stack.ask("/api/tasks").values()
        return {(task["name"], task["args"]) for task in tasks if task["state"] == "SUCCESS"}

    wait_until(lambda: expected <= shown(), SEEN_WITHIN_S)
    workers = set(stack.ask("/api/workers"))
    assert {task["worker"] for task in stack.ask("/api/tasks").values()} <= workers


def test_a_message_itself_holds_a_step_id_and_nothing_else(stack: Stack, batch: Batch) -> None:
    with stack.database.read() as session:
        kinds = {row.id: row.kind for row in session.scalars(select(StepRow))}
    sent = set()
    for message in batch.messages:
        arguments, named, embedded = json.loads(base64.b64decode(message["body"]))
        (step_id,) = arguments
        assert message["headers"]["task"] == task_name(StepKind(kinds[step_id]))
        assert named == {}
        assert not any(embedded.values())
        sent.add(step_id)
    # At least once: a step that waits at a busy worker is sent to one that has become idle.
    assert sent == set(kinds)


def test_the_page_of_tasks_has_the_columns_that_people_ask_for(stack: Stack) -> None:
    page = httpx.get(f"{stack.flower_url}/tasks", auth=(USER, PASSWORD), timeout=10, trust_env=False).text
    assert re.findall(r"<th[^>]*>\s*([\w ]+?)\s*</th>", page) == COLUMNS
