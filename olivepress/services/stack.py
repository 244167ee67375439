"""All services of one machine with their embedded parts: start, watch, restart, stop, and leave no process behind.

part        STARTING ─ answers ─► READY ─ ends by itself ─► restarted, or the stack stops
the stack   stop(): SIGTERM to all services, so that work is handed back, SIGKILL after the grace; then Redis.
            A kill -9 of this process ends the parts through the kernel (`olivepress.lifetime`).
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from redis import Redis
from redis.exceptions import RedisError

from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database
from olivepress.errors import ServiceUnavailable, TransientError
from olivepress.evidence.signing import SigningKey
from olivepress.services import redis as embedded_redis
from olivepress.services.flower import USER as FLOWER_USER
from olivepress.settings import SIGNING_KEY_FILE, Settings

SERVER_FILE = "server.json"
START_WITHIN_S = 60.0
STOP_WITHIN_S = 10.0
RESTARTS_IN_A_ROW = 5
STABLE_AFTER_S = 60.0
# All services at once, then Redis: they stop without noise while it is there.
STOP_LAST = "redis"
SIGNING_KEY_VARIABLE = "OLIVEPRESS_SIGNING_KEY_FILE"


class PartDied(TransientError):
    """A part of the stack ended by itself."""


@dataclass
class Part:
    """One process of the stack."""

    name: str
    command: list[str]
    log_file: Path
    secrets: dict[str, str] = field(default_factory=dict)
    """Variables that no other part is given."""
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    restarts: int = 0


@dataclass(frozen=True)
class Access:
    """How to reach a running stack; what `server.json` in its data directory says."""

    url: str
    admin_key_file: str
    flower_url: str
    flower_user: str
    flower_password_file: str
    pid: int = field(default_factory=os.getpid)


class Stack:
    """The parts of one data directory. Use as a context manager: leaving it stops all parts."""

    def __init__(self, settings: Settings, *, may_restart: bool) -> None:
        self._may_restart = may_restart
        self._data_dir = settings.data_dir.resolve()
        self._parts: dict[str, Part] = {}
        self._closing = contextlib.ExitStack()
        self._settings = settings.model_copy(update={"data_dir": self._data_dir})

    def __enter__(self) -> "Stack":
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def access(self) -> Access:
        """How to reach it."""
        return self._access

    @property
    def log_files(self) -> dict[str, Path]:
        """The log of each part."""
        return {name: part.log_file for name, part in self._parts.items()}

    def check(self) -> list[str]:
        """Look after the parts; call it every second or so, always from the thread that started the stack.

        Returns:
            What happened, in words.

        Raises:
            PartDied: a part ended and may not, or not again, be restarted.
        """
        events = []
        for part in list(self._parts.values()):
            if part.process is None or part.process.poll() is None:
                continue
            how = _how_it_ended(part.process.returncode)
            if time.monotonic() - part.started_at > STABLE_AFTER_S:
                part.restarts = 0
            if not self._may_restart or part.restarts >= RESTARTS_IN_A_ROW:
                raise PartDied(f"{part.name} {how}; its log: {part.log_file}\n{_last_lines(part.log_file)}")
            part.restarts += 1
            time.sleep(min(5.0, 0.2 * 2**part.restarts))
            self._launch(part)
            events.append(f"{part.name} {how}; restarted ({part.restarts} of {RESTARTS_IN_A_ROW} in a row)")
        return events

    def stop(self) -> None:
        """End all parts and everything they started; safe to call again."""
        last = self._parts.pop(STOP_LAST, None)
        _end_all([*self._parts.values()])
        self._parts.clear()
        _end_all([last] if last else [])
        self._closing.close()

    def _start(self) -> None:
        data_dir = self._data_dir
        for name in ("run", "logs", "store", "workspaces"):
            (data_dir / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._closing.enter_context(_only_one(data_dir))
        admin_key_file = data_dir / "admin-key"
        admin_key = _secret(admin_key_file)
        password_file = data_dir / "flower-password"
        redis_password = _secret(data_dir / "run" / "redis-password")
        api_port = _free_port("api", self._settings.api_port)
        flower_port = _free_port("flower", self._settings.flower_port)
        socket_file = embedded_redis.socket_path(data_dir)
        if not socket_file.is_relative_to(data_dir):
            self._closing.callback(shutil.rmtree, socket_file.parent, ignore_errors=True)
        key_file = self._settings.signing_key_file or data_dir / SIGNING_KEY_FILE
        if not self._settings.signing_key_file:
            SigningKey.load_or_create(key_file)
        inherited = {name: value for name, value in os.environ.items() if name != SIGNING_KEY_VARIABLE}
        environment = inherited | {
            "OLIVEPRESS_DATA_DIR": str(data_dir),
            "OLIVEPRESS_REDIS_URL": embedded_redis.url(socket_file, redis_password),
            "OLIVEPRESS_FLOWER_PASSWORD": _secret(password_file),
            "OLIVEPRESS_API_PORT": str(api_port),
            "OLIVEPRESS_FLOWER_PORT": str(flower_port),
            "OLIVEPRESS_SLOTS": str(self._settings.slots),
            "OLIVEPRESS_CHECKPOINT_ROOTS": self._settings.checkpoint_roots,
        }
        self._environment = environment
        self._access = Access(
            url=f"http://127.0.0.1:{api_port}",
            admin_key_file=str(admin_key_file),
            flower_url=f"http://127.0.0.1:{flower_port}",
            flower_user=FLOWER_USER,
            flower_password_file=str(password_file),
        )
        database = Database(self._settings.database)
        upgrade(database)
        database.dispose()
        configuration = embedded_redis.write_configuration(data_dir, socket_file, redis_password)
        self._add("redis", [str(embedded_redis.server_binary()), str(configuration)])
        self._wait_for("redis", lambda: _redis_answers(socket_file, redis_password))
        self._add_service("api", {"OLIVEPRESS_ADMIN_KEY": admin_key})
        self._add_service("scheduler")
        # The worker's imports keep two cores busy for a while: what people wait for comes first.
        self._wait_for("api", lambda: _http_answers(f"{self._access.url}/healthz"))
        self._add_service("worker", {SIGNING_KEY_VARIABLE: str(key_file)})
        self._add_service("flower")
        self._closing.enter_context(_server_file(data_dir / SERVER_FILE, self._access))

    def _add_service(self, name: str, secrets: dict[str, str] | None = None) -> None:
        self._add(name, [sys.executable, "-m", "olivepress", "service", name], secrets)

    def _add(self, name: str, command: list[str], secrets: dict[str, str] | None = None) -> None:
        part = Part(name, command, self._data_dir / "logs" / f"{name}.log", secrets or {})
        self._parts[name] = part
        self._launch(part)

    def _launch(self, part: Part) -> None:
        launcher = [sys.executable, "-m", "olivepress.lifetime", str(os.getpid())]
        with part.log_file.open("ab") as log:
            part.process = subprocess.Popen(
                [*launcher, *part.command],
                env=self._environment | part.secrets,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A Ctrl-C in the terminal is for us; we stop the parts in their order.
                start_new_session=True,
            )
        part.started_at = time.monotonic()

    def _wait_for(self, name: str, answers: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_WITHIN_S
        part = self._parts[name]
        while not answers():
            if part.process is not None and part.process.poll() is not None:
                how = _how_it_ended(part.process.returncode)
                raise PartDied(f"{name} {how} while it started; its log: {part.log_file}\n{_last_lines(part.log_file)}")
            if time.monotonic() > deadline:
                raise PartDied(f"{name} does not answer after {START_WITHIN_S:.0f} s; its log: {part.log_file}")
            time.sleep(0.05)


def _end_all(parts: list[Part]) -> None:
    """SIGTERM to all, then SIGKILL to the whole session of each after the grace."""
    processes = [part.process for part in parts if part.process is not None]
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    deadline = time.monotonic() + STOP_WITHIN_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """One stack a data directory."""
    lock = os.open(data_dir / "run" / "up.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ServiceUnavailable(
            f"olivepress runs already on {data_dir}; use that one, or set OLIVEPRESS_DATA_DIR for another"
        ) from None
    try:
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _server_file(path: Path, access: Access) -> Iterator[None]:
    """Where the client finds the running stack."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(vars(access), indent=2) + "\n")
    temporary.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _secret(path: Path) -> str:
    """The secret in this file, made at the first call; readable by its owner only."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
    return path.read_text().strip()


def _free_port(name: str, wanted: int) -> int:
    """The wanted port of the loopback address, or any free one for 0.

    Raises:
        ServiceUnavailable: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            raise ServiceUnavailable(
                f"port {wanted} for {name} is taken; choose another with --{name}-port (0: any free one)"
            ) from None
        port: int = probe.getsockname()[1]
        return port


def _redis_answers(socket_file: Path, password: str) -> bool:
    with (
        contextlib.suppress(RedisError),
        contextlib.closing(Redis(unix_socket_path=str(socket_file), password=password)) as client,
    ):
        return bool(client.ping())
    return False


def _http_answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code < 500
    except httpx.HTTPError:
        return False


def _how_it_ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _last_lines(log_file: Path, count: int = 8) -> str:
    return "\n".join("  " + line for line in log_file.read_text(errors="replace").splitlines()[-count:])
