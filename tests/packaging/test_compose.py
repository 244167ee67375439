"""What the compose files promise, read as Compose reads them; test_compose_running.py starts what they say."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from olivepress.cli.service import app
from olivepress.services.health import Service as Checked
from olivepress.settings import Settings
from tests.packaging.compose_files import (
    ONE_MACHINE,
    REPOSITORY,
    TEAM,
    WORKER,
    MissingVariable,
    in_start_order,
    mounts,
    read,
    seconds,
    size_bytes,
    variables_of,
)

STACKS = [ONE_MACHINE, TEAM, WORKER]
each_stack = pytest.mark.parametrize("files", STACKS, ids=lambda files: files[-1])
SECRETS = {
    "POSTGRES_PASSWORD": "secret-of-postgres",
    "REDIS_PASSWORD": "secret-of-redis",
    "OLIVEPRESS_ADMIN_KEY": "secret-admin-key",
    "OLIVEPRESS_FLOWER_PASSWORD": "secret-of-flower",
}
PLACES = {
    "CHECKPOINTS": "/shared/checkpoints",
    "STORE": "/shared/store",
    "TLS_DIR": "/etc/olivepress/tls",
    "TEAM_ADDRESS": "10.1.2.3",
    "TEAM_HOST": "press.internal",
    "WORKER_NAME": "box-7",
}
# A worker's own memory above what it offers to its steps: its forkserver with the toolchain, and a reserve.
WORKER_OVERHEAD_BYTES = 10**9


def services_of(files: tuple[str, ...], **more: str) -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = read(files, SECRETS | PLACES | more)["services"]
    return services


def ours(files: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in services_of(files).items() if service["image"] == "olivepress"}


def settings_in(service: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the service makes of its environment."""
    with monkeypatch.context() as patched:
        for name, value in service["environment"].items():
            patched.setenv(name, value)
        return Settings()


def test_the_stack_has_every_part() -> None:
    assert set(services_of(ONE_MACHINE)) == {
        "postgres", "redis", "migrate", "api", "scheduler", "worker-small", "worker-large", "publisher",
        "flower",
    }  # fmt: skip


@each_stack
def test_every_olivepress_variable_is_a_setting(files: tuple[str, ...]) -> None:
    used = {name for service in ours(files).values() for name in service["environment"] if name.startswith("OLIVE")}
    assert used
    assert {name.removeprefix("OLIVEPRESS_").lower() for name in used} <= set(Settings.model_fields)


BUCKET = {
    "OLIVEPRESS_STORE_URL": "s3://models/olivepress",
    "OLIVEPRESS_STORE_ENDPOINT": "https://minio.example:9000",
    "OLIVEPRESS_STORE_REGION": "eu-1",
    "OLIVEPRESS_STORE_ACCESS_KEY": "key-of-the-bucket",
    "OLIVEPRESS_STORE_SECRET_KEY": "secret-of-the-bucket",
    "OLIVEPRESS_STORE_TIMEOUT_S": "30",
}


@each_stack
def test_a_bucket_reaches_those_that_use_the_store_and_its_keys_nobody_else(
    files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, service in services_of(files, **BUCKET).items():
        given = {key: value for key, value in service["environment"].items() if key in BUCKET}
        if service["command"][0] in ("api", "scheduler", "worker", "publisher"):
            assert given == BUCKET, name
            found = settings_in(service, monkeypatch)
            assert found.store_url == BUCKET["OLIVEPRESS_STORE_URL"]
            assert found.store_secret_key is not None and found.store_timeout_s == 30
            of_store = {f"OLIVEPRESS_{field.upper()}" for field in Settings.model_fields if "store_" in field}
            # The directory is the other kind of store; how often it is checked has nothing to do with where it is.
            assert set(BUCKET) == of_store - {"OLIVEPRESS_STORE_DIR", "OLIVEPRESS_STORE_CHECK_DAYS"}
        else:
            assert given == {}, name


@each_stack
def test_without_a_bucket_the_store_is_the_directory(files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for service in ours(files).values():
        found = settings_in(service, monkeypatch)
        assert (found.store_url, found.store) == (None, Path("/data/store"))


@each_stack
def test_every_service_of_ours_runs_a_command_that_exists(files: tuple[str, ...]) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert {service["command"][0] for service in ours(files).values()} <= set(commands)


def test_the_image_runs_what_the_compose_files_name() -> None:
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    assert json.loads(entry) == ["olivepress", "service"]


def test_the_image_owns_the_places_that_named_volumes_take_over() -> None:
    """An empty named volume takes owner and mode from the directory of the image below it."""
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    (made,) = re.findall(r"mkdir -p (.*?) && chown", dockerfile)
    (owned,) = re.findall(r"chown -R olivepress (.*)$", dockerfile, re.MULTILINE)
    named = {
        target
        for service in ours(ONE_MACHINE).values()
        for target, source in mounts(service).items()
        if source == "scratch" or target == "/data/store"
    }
    assert named == set(made.split()) == set(owned.split())


@each_stack
def test_no_file_has_a_secret_of_its_own(files: tuple[str, ...]) -> None:
    used = set(SECRETS) & variables_of(files)
    assert {"POSTGRES_PASSWORD", "REDIS_PASSWORD"} <= used
    for secret in used:
        others = {name: value for name, value in (SECRETS | PLACES).items() if name != secret}
        with pytest.raises(MissingVariable, match=secret):
            read(files, others)


@each_stack
def test_secrets_travel_by_environment_and_never_by_argument(files: tuple[str, ...]) -> None:
    for name, service in services_of(files).items():
        spoken = json.dumps([service["command"], service.get("healthcheck", {})])
        assert not [secret for secret in SECRETS.values() if secret in spoken], name


@each_stack
def test_every_service_has_a_health_check_and_one_shots_end_by_themselves(files: tuple[str, ...]) -> None:
    for name, service in services_of(files).items():
        if name == "migrate":
            assert service["restart"] == "no"
            continue
        check = service["healthcheck"]
        assert service["restart"] == "unless-stopped"
        assert seconds(check["timeout"]) <= seconds(check["interval"])
        if service["image"] == "olivepress":
            assert check["test"] == ["CMD", "olivepress", "service", "health", service["command"][0]]
            assert service["command"][0] in [*Checked]


def test_services_start_after_a_healthy_database_and_redis_and_a_complete_migration() -> None:
    services = services_of(ONE_MACHINE)
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in set(ours(ONE_MACHINE)) - {"migrate"}:
        assert services[name]["depends_on"] == {
            "postgres": {"condition": "service_healthy"},
            "redis": {"condition": "service_healthy"},
            "migrate": {"condition": "service_completed_successfully"},
        }, name
    assert in_start_order(services)[:3] == ["postgres", "redis", "migrate"]


def test_only_the_api_and_flower_are_published_and_by_default_on_loopback() -> None:
    published = {name: service["ports"] for name, service in services_of(ONE_MACHINE).items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8720:8720"], "flower": ["127.0.0.1:5555:5555"]}


def test_an_administrator_publishes_the_api_elsewhere_and_nothing_else_follows() -> None:
    services = services_of(ONE_MACHINE, API_PUBLISHED="10.9.9.9:443")
    assert services["api"]["ports"] == ["10.9.9.9:443:8720"]
    assert services["flower"]["ports"] == ["127.0.0.1:5555:5555"]


def test_a_team_reaches_postgres_and_redis_on_the_private_address_only() -> None:
    services = services_of(TEAM)
    assert services["postgres"]["ports"] == ["10.1.2.3:5432:5432"]
    assert services["redis"]["ports"] == ["10.1.2.3:6379:6379"]
    assert not [name for name, service in services_of(WORKER).items() if "ports" in service]


@pytest.mark.parametrize("files", [TEAM, WORKER], ids=lambda files: files[-1])
def test_with_a_team_every_connection_checks_certificate_and_name(files: tuple[str, ...]) -> None:
    for name, service in ours(files).items():
        environment = service["environment"]
        assert environment["OLIVEPRESS_DATABASE_URL"].endswith("?sslmode=verify-full&sslrootcert=/tls/ca.crt"), name
        assert environment["OLIVEPRESS_REDIS_URL"].startswith("rediss://"), name
        assert environment["OLIVEPRESS_REDIS_URL"].endswith("?ssl_ca_certs=/tls/ca.crt"), name
        assert "/tls/ca.crt" in mounts(service), name


def test_postgres_of_a_team_takes_passwords_over_tls_only() -> None:
    rules = [
        line.split()
        for line in (REPOSITORY / "deploy" / "pg_hba.conf").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert {rule[0] for rule in rules} == {"local", "hostssl"}
    assert {rule[-1] for rule in rules} == {"scram-sha-256"}
    assert "hba_file=/etc/olivepress/pg_hba.conf" in services_of(TEAM)["postgres"]["command"]


@each_stack
def test_a_worker_may_use_its_whole_grace_before_it_is_killed(
    files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, service in ours(files).items():
        grace_s = settings_in(service, monkeypatch).shutdown_grace_s
        assert seconds(service["stop_grace_period"]) >= grace_s + 10, name
        if service["command"] == ["worker"]:
            assert grace_s >= 30, name


@each_stack
def test_every_service_has_limits_and_a_worker_offers_less_than_its_own(
    files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, service in services_of(files).items():
        assert service["pids_limit"] > 0, name
        limit_bytes = size_bytes(service["mem_limit"])
        if service["command"] == ["worker"]:
            offered_bytes = settings_in(service, monkeypatch).memory
            assert offered_bytes is not None
            assert offered_bytes + WORKER_OVERHEAD_BYTES <= limit_bytes, name
            assert float(service["cpus"]) > 0, name


@each_stack
def test_every_root_file_system_is_read_only_and_nobody_gains_privileges(files: tuple[str, ...]) -> None:
    for name, service in services_of(files).items():
        assert service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["image"] == "olivepress" or service["user"] not in ("root", "0"), name


@each_stack
def test_what_must_survive_lies_in_named_volumes_or_on_the_host(files: tuple[str, ...]) -> None:
    declared = set(read(files, SECRETS | PLACES)["volumes"])
    without_store = {
        name: value for name, value in (SECRETS | PLACES).items() if name != "STORE" or files != ONE_MACHINE
    }
    for name, service in read(files, without_store)["services"].items():
        for target, source in mounts(service).items():
            is_host_path = source.startswith(("/", "./"))
            assert target in service.get("tmpfs", []) or is_host_path or source in declared, f"{name} {target}"


@each_stack
def test_directories_of_the_settings_are_mounted_where_a_service_writes(
    files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, service in ours(files).items():
        if service["command"] == ["worker"]:
            settings = settings_in(service, monkeypatch)
            under = {Path(target) for target in mounts(service)}
            for place in (settings.store, settings.workspaces, *settings.roots, settings.exclusive_lock):
                assert under & {place, *place.parents}, f"{name} {place}"


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose client is installed")
@each_stack
@pytest.mark.parametrize("more", [{}, BUCKET], ids=["a directory", "a bucket"])
def test_the_client_reads_the_files_as_this_test_does(
    files: tuple[str, ...], more: dict[str, str], tmp_path: Path
) -> None:
    variables = tmp_path / "variables"
    variables.write_text("".join(f"{name}={value}\n" for name, value in (SECRETS | PLACES | more).items()))
    named = [part for name in files for part in ("-f", str(REPOSITORY / name))]
    done = subprocess.run(
        ["docker-compose", "--env-file", str(variables), *named, "config"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    theirs = yaml.safe_load(done.stdout)["services"]
    assert set(theirs) == set(services_of(files))
    for name, service in services_of(files, **more).items():
        # A variable without a value is not given to the container.
        given = theirs[name]["environment"]
        theirs[name]["environment"] = {variable: value for variable, value in given.items() if value is not None}
        for key in ("command", "environment", "depends_on", "user", "image"):
            # The client prints a dollar sign as it would have to be written.
            shown = json.loads(json.dumps(theirs[name].get(key)).replace("$$", "$"))
            assert shown == service.get(key), f"{name} {key}"
        assert theirs[name].get("healthcheck", {}).get("test") == service.get("healthcheck", {}).get("test"), name
        sources = {volume.split(":")[1] for volume in theirs[name].get("volumes", [])}
        assert sources == set(mounts(service)) - set(service.get("tmpfs", [])), name
