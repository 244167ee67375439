"""Starts services of compose files without an engine: each one's very command, environment and health check.

What a container brings is put in its place: host names become loopback, ports free ones, and every mounted path a
directory of the test. Programs of the images (redis-server, redis-cli, pg_isready) are wrapped so that they use these
ports. PostgreSQL itself is tests/postgres.py's, with the options of the command. Nothing else is changed.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.packaging.compose_files import REPOSITORY, Service, mounts, seconds
from tests.postgres import PostgresServer, installed_programs
from tests.redis_server import free_port, redis_has_tls, redis_program
from tests.tls import Identity, relay

HEALTHY_WITHIN_S = 90.0
LOOK_EVERY_S = 0.2
SHIM = "#!/bin/sh\n"
# A program built without TLS listens without it; the relay before it speaks TLS with the same certificate.
WITHOUT_TLS_OPTIONS = """\
n=$#
while [ $n -gt 0 ]; do
  case "$1" in
    --tls-*|--port) shift 2; n=$((n-2)) ;;
    *) set -- "$@" "$1"; shift; n=$((n-1)) ;;
  esac
done
"""
PING = """\
import sys
from redis import Redis
import os
authority = sys.argv[sys.argv.index("--cacert") + 1]
url = f"rediss://:{os.environ['REDISCLI_AUTH']}@localhost:PORT/0"
print("PONG" if Redis.from_url(url, ssl_ca_certs=authority).ping() else "")
"""


@dataclass
class Running:
    """A service's process, and what is needed to ask how it is."""

    name: str
    service: Service
    process: "subprocess.Popen[bytes]"
    environment: dict[str, str]
    log_file: Path
    check: list[str]

    def is_healthy(self) -> bool:
        """Run its health check once."""
        limit_s = seconds(self.service["healthcheck"]["timeout"])
        done = subprocess.run(self.check, env=self.environment, capture_output=True, timeout=limit_s, cwd="/")
        return done.returncode == 0

    def wait_until_healthy(self, within_s: float = HEALTHY_WITHIN_S) -> None:
        """Run its health check until it passes.

        Raises:
            AssertionError: the service ended, or the check did not pass in time; the message has its log.
        """
        deadline = time.monotonic() + within_s
        while not self.is_healthy():
            assert self.process.poll() is None, f"{self.name} ended:\n{self.log()}"
            assert time.monotonic() < deadline, f"{self.name} is not healthy after {within_s} s:\n{self.log()}"
            time.sleep(LOOK_EVERY_S)

    def stop(self) -> float:
        """Stop it as an engine does; gives the seconds that it took.

        Raises:
            AssertionError: it needed longer than its stop grace, or ended with another code than 0.
        """
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        grace_s = seconds(self.service["stop_grace_period"])
        try:
            code = self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not stop within {grace_s} s:\n{self.log()}") from None
        assert code == 0, f"{self.name} ended with {code}:\n{self.log()}"
        return time.monotonic() - started

    def log(self) -> str:
        """The end of what it printed."""
        return self.log_file.read_text(errors="replace")[-3000:]


@dataclass
class Machine:
    """Stands in for an engine: names, ports and volumes of containers, all below one directory."""

    directory: Path
    postgres_port: int
    api_port: int = field(default_factory=free_port)
    flower_port: int = field(default_factory=free_port)
    redis_port: int = field(default_factory=free_port)
    running: dict[str, Running] = field(default_factory=dict)

    def here(self, service_name: str, service: Service, text: str) -> str:
        """A text of a service with its paths, hosts and ports as they are on this machine."""
        text = re.sub(r"@[\w.-]+:5432/", f"@localhost:{self.postgres_port}/", text)
        text = re.sub(r"@[\w.-]+:6379/", f"@localhost:{self.redis_port}/", text)
        for target, source in mounts(service).items():
            text = re.sub(rf"(?<![\w/.]){re.escape(target)}(?![\w-])", str(self._mounted(service_name, target, source)), text)
        return text

    def environment_of(self, name: str, service: Service) -> dict[str, str]:
        """Its own variables and the image's, and nothing of this process's but where programs and libraries lie."""
        image = _image_environment() if service["image"] == "olivepress" else {}
        values = {key: self.here(name, service, str(value)) for key, value in (image | service["environment"]).items()}
        programs = os.pathsep.join([str(self.directory / "bin"), str(Path(sys.executable).parent), os.defpath])
        ports = {"OLIVEPRESS_API_PORT": str(self.api_port), "OLIVEPRESS_FLOWER_PORT": str(self.flower_port)}
        if service["image"] != "olivepress":
            ports = {}
        return {"PATH": programs, "LANG": "C.UTF-8"} | values | ports

    def start(self, name: str, service: Service) -> Running:
        """Start a service's command in its environment; its health check is for the caller."""
        command = [self.here(name, service, part) for part in service["command"]]
        if service["image"] == "olivepress":
            command = [*_entry_point(), *command]
        environment = self.environment_of(name, service)
        log_file = self.directory / f"{name}.log"
        working = next((self._mounted(name, target, source) for target, source in mounts(service).items()))
        launcher = [sys.executable, "-P", str(REPOSITORY / "olivepress" / "lifetime.py"), str(os.getpid())]
        with log_file.open("ab") as log:
            process = subprocess.Popen(
                [*launcher, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=working,
                start_new_session=True,
            )
        check = [self.here(name, service, part) for part in service.get("healthcheck", {}).get("test", [])]
        check = ["sh", "-c", *check[1:]] if check[:1] == ["CMD-SHELL"] else check[1:]
        self.running[name] = Running(name, service, process, environment, log_file, check)
        return self.running[name]

    def wrap_programs(self, *, authority: Path | None) -> None:
        """Programs of the images, as containers find them under their names, using this machine's ports."""
        place = self.directory / "bin"
        place.mkdir(parents=True)
        port = self.redis_port
        if authority is None:
            serve = f'exec {redis_program()} "$@" --port {port} --bind 127.0.0.1\n'
            ask = f'exec {redis_program("redis-cli")} -p {port} "$@"\n'
        elif redis_has_tls():
            serve = f'exec {redis_program()} "$@" --tls-port {port} --bind 127.0.0.1\n'
            ask = f'exec {redis_program("redis-cli")} -p {port} "$@"\n'
        else:
            serve = f'{WITHOUT_TLS_OPTIONS}exec {redis_program()} "$@" --port {self.plain_redis_port} --bind 127.0.0.1\n'
            ping = shlex.quote(PING.replace("PORT", str(port)))
            ask = f'exec {sys.executable} -c {ping} "$@"\n'
        is_ready = installed_programs() / "bin" / "pg_isready"
        ready = f'exec {is_ready} "$@" --port={self.postgres_port}\n'
        for name, text in {"redis-server": serve, "redis-cli": ask, "pg_isready": ready}.items():
            (place / name).write_text(SHIM + text)
            (place / name).chmod(0o755)

    @property
    def plain_redis_port(self) -> int:
        """Where a Redis without TLS of its own listens behind the relay."""
        return self._plain_redis_port

    def __post_init__(self) -> None:
        self._plain_redis_port = free_port()

    def _mounted(self, service_name: str, target: str, source: str) -> Path:
        """Where a container's path lies here: volumes are shared, tmpfs are each service's own, host paths as they are."""
        if source.startswith("/"):
            return Path(source)
        if source.startswith("./"):
            return REPOSITORY / source
        name = f"volume-{source}" if source else f"tmpfs-{service_name}{target.replace('/', '-')}"
        place = self.directory / name
        place.mkdir(parents=True, exist_ok=True)
        return place
