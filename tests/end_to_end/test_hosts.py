"""Several hosts for real: workers in network namespaces of their own, with an address and a host name each.

A bridge joins them with PostgreSQL and Redis, which are reached over TLS with passwords on its private address, as
compose.worker.yml says; the store is a directory that they share. Needs root and iproute2.
"""

import contextlib
import ipaddress
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from olivepress.client import Client
from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database
from olivepress.database.tables import AttemptRow, JobRow, StepRow, WorkerRow
from olivepress.jobs import FINAL_JOB_STATES, AttemptOutcome, JobState, StepKind
from olivepress.manifest import parse_manifest
from tests.doubles.orders import Order, Orders, write_checkpoint
from tests.doubles.services import ADMIN_KEY, Service, double, environment, product, wait_for_api
from tests.integration.database_cases import DEFAULT_STEPS
from tests.postgres import postgres_server
from tests.redis_server import free_port, redis_server
from tests.stack_cases import wait_until
from tests.tls import make_identity, relay

pytestmark = pytest.mark.timeout(180)
LEASE_S = 4.0
HOSTS = ("host-a", "host-b")
# Two rescans of the scheduler and the start of a child.
RESCUED_WITHIN_S = LEASE_S + 8
REJOINED_WITHIN_S = 30.0
# The worker's own watchdog looks every half second.
WATCHDOG_S = 0.7


def ip(*arguments: str) -> None:
    """Run iproute2."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Network:
    """A bridge with an address of this machine, and a namespace for each host."""

    number: int = field(default_factory=os.getpid)

    @property
    def address(self) -> str:
        """Of the bridge."""
        return self._address(1)

    def start(self) -> None:
        """Make all of it."""
        bridge = self._name("br")
        ip("link", "add", bridge, "type", "bridge")
        ip("address", "add", f"{self.address}/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for place, host in enumerate(HOSTS, start=11):
            inner, outer, space = self._name("in"), self._link(host), self.space(host)
            ip("netns", "add", space)
            ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", space)
            ip("link", "set", outer, "master", bridge, "up")
            ip("-n", space, "address", "add", f"{self._address(place)}/24", "dev", inner)
            ip("-n", space, "link", "set", inner, "up")
            ip("-n", space, "link", "set", "lo", "up")

    def stop(self) -> None:
        """Remove what is there of it."""
        for host in HOSTS:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", self.space(host))
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("link", "del", self._link(host))
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", self._name("br"))

    def space(self, host: str) -> str:
        """The namespace of a host."""
        return f"olivepress-{self.number}-{host}"

    def cut(self, host: str) -> None:
        """Its packets vanish from now on, as with a pulled cable."""
        ip("link", "set", self._link(host), "down")

    def join(self, host: str) -> None:
        """The cable is back."""
        ip("link", "set", self._link(host), "up")

    def _address(self, place: int) -> str:
        # A subnet of the range for tests of network devices (RFC 2544), which nobody else uses.
        return str(ipaddress.ip_address("198.18.0.0") + (self.number % 512) * 256 + place)

    def _link(self, host: str) -> str:
        return self._name(host[-1])

    def _name(self, part: str) -> str:
        # Linux takes 15 characters.
        return f"op{self.number}{part}"


@dataclass(frozen=True)
class Urls:
    """Where the services find the others."""

    database: str
    redis: str


@dataclass
class Hosts:
    """A running stack over the network."""

    network: Network
    database: Database
    client: Client
    checkpoints: Path
    workers: dict[str, Service]
    numbers: Iterator[int]

    def submit(self, convert: Order) -> int:
        """A job whose convert does this; gives its id."""
        number = next(self.numbers)
        path = write_checkpoint(self.checkpoints / f"model-{number}", number, Orders({"convert": convert}))
        return int(self.client.submit(parse_manifest({"checkpoints": [{"path": str(path)}]}))["jobs"][0])

    def state(self, job_id: int) -> str:
        """A job's."""
        with self.database.read() as session:
            return session.get_one(JobRow, job_id).state

    def attempts(self, job_id: int, kind: StepKind = StepKind.CONVERT) -> list[AttemptRow]:
        """Of a step, by fence."""
        query = select(AttemptRow).join(StepRow, StepRow.id == AttemptRow.step_id)
        mine = query.where(StepRow.job_id == job_id, StepRow.kind == kind).order_by(AttemptRow.fence)
        with self.database.read() as session:
            return list(session.scalars(mine))

    def host_of(self, attempt: AttemptRow) -> str:
        """Where an attempt ran."""
        with self.database.read() as session:
            return session.get_one(WorkerRow, attempt.worker_id).host

    def children(self, host: str) -> list[psutil.Process]:
        """Processes of running steps on a host: each leads a session of its own."""
        found = []
        for process in self.workers[host].family()[1:]:
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(process.pid) == process.pid:
                    found.append(process)
        return found

    def running_on(self, job_id: int, fence: int = 1) -> str | None:
        """The host on which the convert of a job runs in this attempt and is seen to run."""
        started = [attempt for attempt in self.attempts(job_id) if attempt.fence == fence and attempt.outcome is None]
        host = self.host_of(started[0]) if started else None
        return host if host and self.children(host) else None


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for program in ("ip", "unshare", "hostname"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no program '{program}' (iproute2, util-linux, hostname)")
    network = Network()
    try:
        try:
            network.start()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield network
    finally:
        network.stop()


@pytest.fixture(scope="module")
def hosts(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    directory = tmp_path_factory.mktemp("hosts")
    with contextlib.ExitStack() as closing:
        identity = make_identity(directory / "certificates", network.address)
        postgres = closing.enter_context(postgres_server(directory / "postgres"))
        redis = closing.enter_context(redis_server(directory / "redis"))
        database = Database(postgres.create_database("hosts"))
        closing.callback(database.dispose)
        upgrade(database)
        tls = {
            "postgres": closing.enter_context(relay(postgres.port, identity, asks_first=True, listen=network.address)),
            "redis": closing.enter_context(relay(redis.port, identity, listen=network.address)),
        }
        address = f"{postgres.password}@{network.address}:{tls['postgres'].port}"
        checked = f"sslmode=verify-full&sslrootcert={identity.authority_file}"
        urls = Urls(
            f"postgresql+psycopg://olivepress:{address}/hosts?{checked}",
            f"rediss://:{redis.password}@{network.address}:{tls['redis'].port}/0?ssl_ca_certs={identity.authority_file}",
        )
        yield closing.enter_context(_running(network, directory, database, urls))
        assert all(front.accepted >= len(HOSTS) for front in tls.values())


@contextlib.contextmanager
def _running(network: Network, directory: Path, database: Database, urls: Urls) -> Iterator[Hosts]:
    port, checkpoints = free_port(), directory / "checkpoints"
    variables = environment(
        directory / "data",
        urls.database,
        urls.redis,
        checkpoints,
        api_port=str(port),
        slots="1",
        store_dir=str(directory / "store"),
        signal_again_after_s="3",
        shutdown_grace_s="1",
    )
    options = ["--lease", str(LEASE_S), "--never-give-up"]
    commands = {"api": product("api"), "scheduler": double("scheduler", *options)}
    commands |= {host: _on_host(network, host, double("worker", *options)) for host in HOSTS}
    services = {
        name: Service(
            name,
            command,
            # Each host has a disk of its own for workspaces.
            variables | {"OLIVEPRESS_WORKSPACE_DIR": str(directory / f"workspaces-{name}")},
            directory / f"{name}.log",
        )
        for name, command in commands.items()
    }
    url = f"http://127.0.0.1:{port}"
    try:
        for service in services.values():
            service.start()
        wait_for_api(url, services["api"])
        with Client(url, ADMIN_KEY) as client:
            workers = {host: services[host] for host in HOSTS}
            yield Hosts(network, database, client, checkpoints, workers, iter(range(1, 1000)))
    finally:
        for service in services.values():
            service.signal(signal.SIGTERM)
        for service in services.values():
            service.ended()


def _on_host(network: Network, host: str, command: list[str]) -> list[str]:
    """The command in a host's namespace, with a host name of its own; each program becomes the next one."""
    inside = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host, *command]
    return ["ip", "netns", "exec", network.space(host), *inside]


@pytest.mark.parametrize(
    ("seconds", "ends"),
    [(6.5, "would go on for longer than its lease"), (1.0, "has its result while nobody can be told")],
)
def test_a_step_of_a_host_that_is_cut_off_runs_elsewhere_and_its_stale_result_is_void(
    hosts: Hosts, seconds: float, ends: str
) -> None:
    job_id = hosts.submit(Order(seconds=seconds, bytes=100_000))
    wait_until(lambda: hosts.running_on(job_id) is not None, 30, every_s=0.02)
    lost = hosts.running_on(job_id) or hosts.host_of(hosts.attempts(job_id)[0])
    other = next(host for host in HOSTS if host != lost)
    hosts.network.cut(lost)
    try:
        cut_at = time.time()
        last_seen = _last_time_of_children(hosts, lost, job_id)
        second = hosts.attempts(job_id)[1]
        assert hosts.host_of(second) == other
        assert second.started_at - cut_at < RESCUED_WITHIN_S
        assert last_seen < second.started_at + WATCHDOG_S, f"a child of a host that is cut off, which {ends}, lived on"
        wait_until(lambda: hosts.state(job_id) in FINAL_JOB_STATES, 40)
    finally:
        hosts.network.join(lost)
    _see_it_work_again(hosts, lost)
    first, second = hosts.attempts(job_id)
    assert (first.fence, first.outcome) == (1, AttemptOutcome.LEASE_LOST)
    assert (second.fence, second.outcome) == (2, AttemptOutcome.SUCCEEDED)
    assert hosts.state(job_id) == JobState.SUCCEEDED


def _last_time_of_children(hosts: Hosts, lost: str, job_id: int) -> float:
    """When a step's process was last seen on the host that is cut off; returns once the step runs a second time."""
    last_seen, deadline = 0.0, time.monotonic() + RESCUED_WITHIN_S
    while (lives := bool(hosts.children(lost))) or len(hosts.attempts(job_id)) < 2:
        if lives:
            last_seen = time.time()
        assert time.monotonic() < deadline, f"{lost} has children: {lives}; attempts: {len(hosts.attempts(job_id))}"
        time.sleep(0.05)
    return last_seen


def _see_it_work_again(hosts: Hosts, host: str) -> None:
    """New jobs come until one step of them has succeeded on the host that was cut off."""
    deadline = time.monotonic() + REJOINED_WITHIN_S
    while time.monotonic() < deadline:
        job_ids = [hosts.submit(Order(seconds=0.3)) for _ in range(2)]
        wait_until(lambda ids=job_ids: all(hosts.state(each) in FINAL_JOB_STATES for each in ids), 40)  # type: ignore[misc]
        assert {hosts.state(each) for each in job_ids} == {JobState.SUCCEEDED}
        ran = [attempt for each in job_ids for kind in DEFAULT_STEPS for attempt in hosts.attempts(each, kind)]
        if any(hosts.host_of(each) == host and each.outcome == AttemptOutcome.SUCCEEDED for each in ran):
            return
    pytest.fail(f"{host} did no step within {REJOINED_WITHIN_S} s after its link came back")
