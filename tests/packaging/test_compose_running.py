"""The services of the compose files start, become healthy by their own checks, and stop within their grace."""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from olivepress.client import Client
from tests.packaging.compose_files import ONE_MACHINE, TEAM, WORKER, read
from tests.packaging.running_services import Container, running
from tests.postgres import PostgresServer, postgres_server
from tests.tls import Identity, make_identity

pytestmark = pytest.mark.timeout(300)
REFUSED_WITHIN_S = 30.0


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server that the compose file may configure."""
    with postgres_server(tmp_path / "postgres") as server:
        yield server


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path, as containers have: a worker's forkserver makes a socket below TMPDIR."""
    with tempfile.TemporaryDirectory(prefix="press-") as directory:
        yield Path(directory)


@pytest.fixture
def variables(tmp_path: Path, own_postgres: PostgresServer) -> dict[str, str]:
    """What an administrator writes into .env, for both machines of a team."""
    shared = {"CHECKPOINTS": tmp_path / "checkpoints", "STORE": tmp_path / "store", "TLS_DIR": tmp_path / "tls"}
    for directory in shared.values():
        directory.mkdir()
    return {name: str(directory) for name, directory in shared.items()} | {
        "POSTGRES_PASSWORD": own_postgres.password,
        "REDIS_PASSWORD": "0123456789abcdef",
        "OLIVEPRESS_ADMIN_KEY": "admin0123456789",
        "OLIVEPRESS_FLOWER_PASSWORD": "flower0123456789",
        "TEAM_ADDRESS": "127.0.0.1",
        "TEAM_HOST": "press.internal",
        "WORKER_NAME": "box-7",
        "SMALL_MEMORY": "2GB",
        "LARGE_MEMORY": "3GB",
        "WORKER_POOLS": "small,large",
        "WORKER_MEMORY": "5GB",
    }


def offers(containers: dict[str, Container], variables: dict[str, str]) -> dict[str, int]:
    """The memory that each living worker offers, by its pools, as the API tells it; a publisher offers none."""
    port = containers["api"].machine.api_port
    with Client(f"http://127.0.0.1:{port}", variables["OLIVEPRESS_ADMIN_KEY"]) as client:
        return {",".join(worker["pools"]): worker["memory_bytes"] for worker in client.workers() if worker["alive"]}


def test_all_services_of_one_machine_become_healthy_and_stop_in_time(
    place: Path, variables: dict[str, str], own_postgres: PostgresServer
) -> None:
    del variables["STORE"]
    with running(place, ONE_MACHINE, variables, own_postgres) as containers:
        assert offers(containers, variables) == {"small": 2 * 10**9, "large": 3 * 10**9, "default": 0}
        machine = containers["api"].machine
        with closing(Redis(port=machine.redis_port, password=variables["REDIS_PASSWORD"])) as redis:
            kept = {name: redis.config_get(name)[name] for name in ("appendonly", "maxmemory-policy", "save")}
        assert kept == {"appendonly": "yes", "maxmemory-policy": "noeviction", "save": ""}
        with closing(Redis(port=machine.redis_port)) as nobody, pytest.raises(AuthenticationError):
            nobody.ping()
        assert not machine.unmounted.exists(), "a service wrote to the read-only root file system"
    for name in set(containers) - {"postgres", "migrate"}:
        assert not containers[name].is_healthy(), f"{name} is stopped, and its check still passes"


def test_a_team_is_reached_over_tls_and_a_worker_that_trusts_another_authority_is_refused(
    place: Path, tmp_path: Path, variables: dict[str, str], own_postgres: PostgresServer
) -> None:
    identity = make_identity(Path(variables["TLS_DIR"]), "localhost")
    _name_as_the_files_do(identity)
    with running(
        place, TEAM, variables, own_postgres, identity, leave_out={"worker-small", "worker-large"}
    ) as containers:
        machine = containers["api"].machine
        worker = Container("worker", read(WORKER, variables)["services"]["worker"], machine)
        stranger_tls = make_identity(tmp_path / "other-tls", "localhost").authority_file.parent
        elsewhere = read(WORKER, variables | {"TLS_DIR": str(stranger_tls)})["services"]["worker"]
        stranger = Container("stranger", elsewhere, machine)
        try:
            worker.start()
            worker.wait_until_healthy()
            assert offers(containers, variables) == {"small,large": 5 * 10**9, "default": 0}
            stranger.start()
            assert stranger.process is not None
            assert stranger.process.wait(REFUSED_WITHIN_S) != 0
            assert "certificate verify failed" in stranger.log()
            worker.stop()
        finally:
            worker.kill()
            stranger.kill()


def _name_as_the_files_do(identity: Identity) -> None:
    directory = identity.certificate_file.parent
    for service in ("postgres", "redis"):
        (directory / f"{service}.crt").write_bytes(identity.certificate_file.read_bytes())
        (directory / f"{service}.key").write_bytes(identity.key_file.read_bytes())
