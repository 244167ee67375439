"""The parts that are killed: API, two schedulers, three workers, Redis and the database."""

import contextlib
import ctypes
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
from redis import Redis
from redis.exceptions import RedisError

from olivepress.client import Client
from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database
from olivepress.services import redis as embedded
from olivepress.store import DirectoryStore
from tests.chaos.plan import TIME_LIMIT_S
from tests.doubles.services import ADMIN_KEY, Service, double, environment, product, wait_for_api
from tests.postgres import PostgresServer, postgres_server
from tests.redis_server import RedisServer, free_port

MARK = "OLIVEPRESS_CHAOS_MARK"
SLOTS = 2
WORKERS = 3
STARTED_WITHIN_S = 20.0
CLONE_NEWNS = 0x20000
MNT_DETACH = 2
MS_REC, MS_PRIVATE = 0x4000, 0x40000


class EmbeddedRedis:
    """The Redis of `olivepress up`, on a unix socket; with the methods of tests.redis_server.RedisServer."""

    def __init__(self, data_dir: Path) -> None:
        (data_dir / "run").mkdir(parents=True)
        self._data = data_dir / "redis"
        self._password = secrets.token_hex(12)
        self._socket = embedded.socket_path(data_dir)
        configuration = embedded.write_configuration(data_dir, self._socket, self._password)
        command = [str(embedded.server_binary()), str(configuration)]
        self._service = Service("redis", command, os.environ, data_dir / "redis.log")

    @property
    def url(self) -> str:
        """As OLIVEPRESS_REDIS_URL has it."""
        return embedded.url(self._socket, self._password)

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._service.start()
        client = Redis(unix_socket_path=str(self._socket), password=self._password)
        deadline = time.monotonic() + STARTED_WITHIN_S
        with contextlib.closing(client):
            while True:
                with contextlib.suppress(RedisError):
                    client.ping()
                    return
                assert time.monotonic() < deadline, f"Redis does not answer:\n{self._service.last_lines()}"
                time.sleep(0.02)

    def kill(self) -> None:
        """Kill it with -9."""
        self._service.kill()

    def stop(self) -> None:
        """Stop it."""
        self._service.stop()

    def wipe(self) -> None:
        """Remove all that it keeps on disk."""
        for file in self._data.rglob("*"):
            if file.is_file():
                file.unlink()


@dataclass
class ChaosStack:
    """A running stack; `running_stack` makes it."""

    directory: Path
    database: Database
    store: DirectoryStore
    redis: EmbeddedRedis | RedisServer
    postgres: PostgresServer | None
    api_url: str
    services: dict[str, Service]
    mark: str
    lease_s: float
    full_flag: Path
    is_small_disk: bool

    def named(self, kind: str) -> list[Service]:
        """The services of a kind: worker, scheduler, api."""
        return [service for name, service in self.services.items() if name.partition("-")[0] == kind]

    def client(self) -> Client:
        """A client with the admin key."""
        return Client(self.api_url, ADMIN_KEY)

    def marked(self) -> list[psutil.Process]:
        """Every process on this machine that a service of this stack started, however it left it since."""
        wanted = f"{MARK}={self.mark}".encode()
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                values = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if wanted in values and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def strays(self) -> list[psutil.Process]:
        """Marked processes that are neither a service nor what it keeps while it is idle (a forkserver, its helper)."""
        kept: set[int] = set()
        for service in self.services.values():
            if service.is_running:
                kept.add(service.pid)
                kept |= {child.pid for child in psutil.Process(service.pid).children()}
        return [process for process in self.marked() if process.pid not in kept]


@contextlib.contextmanager
def running_stack(directory: Path, kind: str, lease_s: float, store_bytes: int) -> Iterator[ChaosStack]:
    """Start everything, and see that it is gone at the end.

    Args:
        kind: "sqlite" or "postgresql".
        store_bytes: size of the store's own small disk, where this user may mount one.
    """
    with ExitStack() as closing:
        postgres = closing.enter_context(postgres_server(directory / "postgres")) if kind == "postgresql" else None
        url = postgres.create_database("chaos") if postgres else f"sqlite:///{directory / 'olivepress.sqlite'}"
        redis = RedisServer(directory / "redis") if postgres else EmbeddedRedis(directory / "embedded")
        redis.start()
        closing.callback(redis.stop)
        database = Database(url)
        closing.callback(database.dispose)
        upgrade(database)
        is_small_disk = _small_disk(directory / "data/store", store_bytes)
        if is_small_disk:
            closing.callback(_unmount, directory / "data/store")
        stack = _stack(directory, database, redis, postgres, lease_s, is_small_disk)
        try:
            for service in stack.services.values():
                service.start()
            wait_for_api(stack.api_url, stack.services["api"])
            yield stack
        finally:
            end(stack)


def end(stack: ChaosStack) -> dict[str, int | None]:
    """Ask all services to end; gives the exit codes, None for those that had to be killed."""
    for service in stack.services.values():
        service.signal(signal.SIGCONT)
        service.signal(signal.SIGTERM)
    return {name: service.ended() for name, service in stack.services.items()}


def _stack(
    directory: Path,
    database: Database,
    redis: EmbeddedRedis | RedisServer,
    postgres: PostgresServer | None,
    lease_s: float,
    is_small_disk: bool,
) -> ChaosStack:
    port, flag, mark = free_port(), directory / "disk-is-full", secrets.token_hex(8)
    variables = environment(
        directory / "data",
        database.url,
        redis.url,
        directory / "checkpoints",
        api_port=str(port),
        slots=str(SLOTS),
        shutdown_grace_s="1",
        signal_again_after_s="3",
        step_time_limit_s=str(TIME_LIMIT_S),
    ) | {MARK: mark}
    options = ["--lease", str(lease_s), "--never-give-up"]
    commands = {"api": product("api")}
    commands |= {f"scheduler-{number}": double("scheduler", *options) for number in (1, 2)}
    for number in range(1, WORKERS + 1):
        own = [] if is_small_disk else ["--full-while", str(flag)]
        # One of them lives with a wall clock that cannot be relied on.
        own += ["--clock-jumps", str(number)] if number == 1 else []
        commands[f"worker-{number}"] = double("worker", *options, *own)
    (directory / "logs").mkdir()
    services = {
        name: Service(name, command, variables, directory / "logs" / f"{name}.log")
        for name, command in commands.items()
    }
    return ChaosStack(
        directory=directory,
        database=database,
        store=DirectoryStore(directory / "data/store"),
        redis=redis,
        postgres=postgres,
        api_url=f"http://127.0.0.1:{port}",
        services=services,
        mark=mark,
        lease_s=lease_s,
        full_flag=flag,
        is_small_disk=is_small_disk,
    )


def _small_disk(place: Path, size_bytes: int) -> bool:
    """Mount a disk of this size for the store, seen by this process and its children only; False where it may not be.

    Source: mount_namespaces(7). With the namespace the mount is gone too, also after a kill -9.
    """
    place.mkdir(parents=True)
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        return False
    return bool(libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, f"size={size_bytes}".encode()) == 0)


def _unmount(place: Path) -> None:
    ctypes.CDLL(None).umount2(str(place).encode(), MNT_DETACH)
