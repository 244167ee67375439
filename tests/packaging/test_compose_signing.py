"""The key that signs reaches the workers of a team, and no other service."""

import pytest

from tests.packaging.compose_files import MissingVariable, mounts, read

SECRETS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "OLIVEPRESS_ADMIN_KEY", "OLIVEPRESS_FLOWER_PASSWORD")
PLACES = ("CHECKPOINTS", "TEAM_HOST", "WORKER_NAME", "TLS_DIR", "STORE")
TEAM_VARIABLES = dict.fromkeys((*SECRETS, *PLACES), "x")
KEY = {"SIGNING_KEY": "/srv/signing-key.pem"}
PLACE = "/signing-key.pem"


@pytest.mark.parametrize(
    "files", [("docker-compose.yml", "deploy/signing.yml"), ("compose.worker.yml", "deploy/worker-signing.yml")]
)
def test_only_workers_are_given_the_key_and_all_of_them(files: tuple[str, ...]) -> None:
    services = read(files, TEAM_VARIABLES | KEY)["services"]
    plain = read(files[:1], TEAM_VARIABLES)["services"]

    assert set(services) == set(plain)
    workers = {name for name, service in services.items() if service.get("command") == ["worker"]}
    assert workers
    for name, service in services.items():
        variable = service.get("environment", {}).get("OLIVEPRESS_SIGNING_KEY_FILE")
        is_given = (variable, mounts(service).get(PLACE)) == (PLACE, KEY["SIGNING_KEY"])
        assert is_given == (name in workers), name
        assert is_given or (variable is None and PLACE not in mounts(service)), name
        if is_given:
            assert set(mounts(plain[name])) < set(mounts(service))


def test_the_key_is_read_only_and_must_be_named() -> None:
    volumes = read(("docker-compose.yml", "deploy/signing.yml"), TEAM_VARIABLES | KEY)["services"]["worker-small"][
        "volumes"
    ]

    assert f"{KEY['SIGNING_KEY']}:{PLACE}:ro" in volumes
    with pytest.raises(MissingVariable, match="SIGNING_KEY"):
        read(("docker-compose.yml", "deploy/signing.yml"), TEAM_VARIABLES)
