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
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.packaging.compose_files import REPOSITORY, Service, in_start_order, mounts, read, seconds
from tests.postgres import PostgresServer, installed_programs
from tests.redis_server import free_port, redis_has_tls, redis_program
from tests.tls import Identity, relay

HEALTHY_WITHIN_S = 90.0
MIGRATED_WITHIN_S = 60.0
LOOK_EVERY_S = 0.5
# A Redis built without TLS listens without it; the relay before it speaks TLS with the same certificate.
LEAVE_TLS_OUT = """\
n=$#
while [ $n -gt 0 ]; do
  case "$1" in
    --tls-*|--port) shift 2; n=$((n-2)) ;;
    *) set -- "$@" "$1"; shift; n=$((n-1)) ;;
  esac
done
"""
PING_WITH_TLS = """\
import os, sys
from redis import Redis
authority = sys.argv[sys.argv.index("--cacert") + 1]
url = f"rediss://:{os.environ['REDISCLI_AUTH']}@localhost:%d/0"
print("PONG" if Redis.from_url(url, ssl_ca_certs=authority).ping() else "")
"""


@dataclass(frozen=True)
class Machine:
    """What stands in for an engine's network and volumes."""

    directory: Path
    postgres_port: int
    redis_port: int
    api_port: int = field(default_factory=free_port)
    flower_port: int = field(default_factory=free_port)

    @property
    def programs(self) -> Path:
        """The wrapped programs of the images."""
        return self.directory / "bin"

    @property
    def unmounted(self) -> Path:
        """What stands for paths that a container has only in its read-only root; nobody may make it."""
        return self.directory / "unmounted"

    def place_of(self, service: str, target: str, source: str) -> Path:
        """Where a mounted path lies here: a volume is shared, a tmpfs is its service's own, a host's path is itself."""
        if source.startswith("/"):
            return Path(source)
        if source.startswith("./"):
            return REPOSITORY / source
        place = self.directory / (f"volume-{source}" if source else f"tmpfs-{service}{target.replace('/', '-')}")
        place.mkdir(parents=True, exist_ok=True)
        return place


@dataclass
class Container:
    """One service's process."""

    name: str
    service: Service
    machine: Machine
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def is_ours(self) -> bool:
        """Whether it runs the project's image."""
        return bool(self.service["image"] == "olivepress")

    @property
    def environment(self) -> dict[str, str]:
        """Its own variables and its image's, and of this process nothing but where programs lie."""
        values = (_image_environment() if self.is_ours else {}) | self.service["environment"]
        ports = {"OLIVEPRESS_API_PORT": self.machine.api_port, "OLIVEPRESS_FLOWER_PORT": self.machine.flower_port}
        path = os.pathsep.join([str(self.machine.programs), str(Path(sys.executable).parent), os.defpath])
        base = {"PATH": path, "LANG": "C.UTF-8"} | {name: str(port) for name, port in ports.items() if self.is_ours}
        return base | {name: self._here(str(value)) for name, value in values.items()}

    def start(self) -> None:
        """Start its command."""
        command = [self._here(part) for part in self.service["command"]]
        launcher = [sys.executable, "-P", str(REPOSITORY / "olivepress" / "lifetime.py"), str(os.getpid())]
        (first, source), *_ = mounts(self.service).items()
        with self._log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*launcher, *(_entry_point() if self.is_ours else []), *command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Redis writes where it is started, which is its volume in the image too.
                cwd=self.machine.place_of(self.name, first, source) if not self.is_ours else self.machine.directory,
                start_new_session=True,
            )

    def is_healthy(self) -> bool:
        """Run its health check once."""
        check = self.service["healthcheck"]
        kind, *words = [self._here(word) for word in check["test"]]
        command = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        try:
            done = subprocess.run(
                command, env=self.environment, cwd="/", capture_output=True, timeout=seconds(check["timeout"])
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def wait_until_healthy(self) -> None:
        """Run its health check until it passes.

        Raises:
            AssertionError: it ended, or the check did not pass in time; the message has its log.
        """
        deadline = time.monotonic() + HEALTHY_WITHIN_S
        while not self.is_healthy():
            assert self.process is None or self.process.poll() is None, f"{self.name} ended:\n{self.log()}"
            assert time.monotonic() < deadline, f"{self.name} is not healthy:\n{self.log()}"
            time.sleep(LOOK_EVERY_S)

    def wait_until_complete(self) -> None:
        """Wait for a one-shot's end.

        Raises:
            AssertionError: it ended badly; the message has its log.
        """
        assert self.process is not None
        assert self.process.wait(MIGRATED_WITHIN_S) == 0, f"{self.name} failed:\n{self.log()}"

    def stop(self) -> None:
        """Stop it as an engine does.

        Raises:
            AssertionError: it needed longer than its stop grace, or ended with another code than 0.
        """
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        grace_s = seconds(self.service["stop_grace_period"])
        try:
            code = self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not stop within {grace_s} s:\n{self.log()}") from None
        assert code == 0, f"{self.name} ended with {code}:\n{self.log()}"

    def kill(self) -> None:
        """End whatever is left of it."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def log(self) -> str:
        """The end of what it printed."""
        return self._log_file.read_text(errors="replace")[-3000:]

    @property
    def _log_file(self) -> Path:
        return self.machine.directory / f"{self.name}.log"

    def _here(self, text: str) -> str:
        """A text of the service with paths, hosts and ports as they are on this machine."""
        text = re.sub(r"@[\w.-]+:5432/", f"@localhost:{self.machine.postgres_port}/", text)
        text = re.sub(r"@[\w.-]+:6379/", f"@localhost:{self.machine.redis_port}/", text)
        places = {
            target: str(self.machine.place_of(self.name, target, source))
            for target, source in mounts(self.service).items()
        }
        for path in _image_environment().values():
            if path.startswith("/"):
                places.setdefault(path, str(self.machine.unmounted))
        # All in one go, the longest first: what was put in must not be looked at again.
        targets = "|".join(re.escape(target) for target in sorted(places, key=len, reverse=True))
        return re.sub(rf"(?<![\w/.])({targets})(?![\w-])", lambda found: places[found[1]], text)


@contextmanager
def running(
    directory: Path,
    files: tuple[str, ...],
    variables: dict[str, str],
    postgres: PostgresServer,
    identity: Identity | None = None,
    leave_out: Collection[str] = (),
) -> Iterator[dict[str, Container]]:
    """All services of the files, started in their order, each healthy before what depends on it; stopped at the end.

    Args:
        identity: what PostgreSQL and Redis prove themselves with; None: both without TLS.
        leave_out: services that are not started.
    """
    services: dict[str, Service] = read(files, variables)["services"]
    depended_on = {name for service in services.values() for name in service.get("depends_on", {})}
    with ExitStack() as closing:
        postgres_port, redis_port, plain_redis_port = postgres.port, free_port(), free_port()
        if identity is not None:
            # The wheel's PostgreSQL is built without TLS.
            postgres_port = closing.enter_context(relay(postgres.port, identity, asks_first=True)).port
            if not redis_has_tls():
                redis_port = closing.enter_context(relay(plain_redis_port, identity)).port
        machine = Machine(directory, postgres_port, redis_port)
        _wrap_programs(machine, postgres, plain_redis_port, with_tls=identity is not None)
        containers = {name: Container(name, services[name], machine) for name in in_start_order(services)}
        for name in leave_out:
            del containers[name]
        for container in containers.values():
            closing.callback(container.kill)
        for container in containers.values():
            _start(container, postgres, depended_on)
        # What nobody depends on may become healthy together.
        for container in containers.values():
            if container.name not in depended_on:
                container.wait_until_healthy()
        yield containers
        for name in reversed(containers):
            if containers[name].process is not None and name != "migrate":
                containers[name].stop()


def _start(container: Container, postgres: PostgresServer, depended_on: Collection[str]) -> None:
    """Start one service and wait for what others depend on: its health, or a one-shot's end."""
    if container.name == "postgres":
        _configure(container, postgres)
        container.wait_until_healthy()
        return
    container.start()
    if container.name not in depended_on:
        return
    if "healthcheck" in container.service:
        container.wait_until_healthy()
    else:
        container.wait_until_complete()


def _configure(container: Container, postgres: PostgresServer) -> None:
    """The options of PostgreSQL's command, but for TLS, which this build has not; then its first database."""
    given = [option.split("=", 1) for option in container.service["command"] if "=" in option]
    options = {name: value for name, value in given if not name.startswith(("ssl", "hba_file"))}
    assert options, "the command has options"
    postgres.stop()
    postgres.configure(options)
    postgres.start()
    environment = container.service["environment"]
    assert environment["POSTGRES_PASSWORD"] == postgres.password
    postgres.create_database(environment["POSTGRES_DB"])


def _wrap_programs(machine: Machine, postgres: PostgresServer, plain_redis_port: int, *, with_tls: bool) -> None:
    """The programs under the names that images give them, on this machine's ports."""
    serve, ask, port = redis_program(), redis_program("redis-cli"), machine.redis_port
    scripts = {
        "redis-server": f'exec {serve} "$@" --port {port} --bind 127.0.0.1',
        "redis-cli": f'exec {ask} -p {port} "$@"',
        "pg_isready": f'exec {installed_programs() / "bin" / "pg_isready"} "$@" --port={postgres.port}',
    }
    if with_tls and redis_has_tls():
        scripts["redis-server"] = f'exec {serve} "$@" --tls-port {port} --bind 127.0.0.1'
    elif with_tls:
        scripts["redis-server"] = f'{LEAVE_TLS_OUT}exec {serve} "$@" --port {plain_redis_port} --bind 127.0.0.1'
        scripts["redis-cli"] = f'exec {sys.executable} -c {shlex.quote(PING_WITH_TLS % port)} "$@"'
    machine.programs.mkdir(parents=True)
    for name, script in scripts.items():
        (machine.programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (machine.programs / name).chmod(0o755)


def _entry_point() -> list[str]:
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    program, *words = json.loads(entry)
    return [str(Path(sys.executable).with_name(program)), *words]


def _image_environment() -> dict[str, str]:
    (line,) = re.findall(r"^ENV (.*)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    return dict(pair.split("=", 1) for pair in line.split())
