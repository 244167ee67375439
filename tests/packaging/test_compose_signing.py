"""The key that signs reaches the publisher of a team, and no other service, least of all a worker."""

import pytest

from tests.packaging.compose_files import ONE_MACHINE, TEAM, MissingVariable, mounts, read

SECRETS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "OLIVEPRESS_ADMIN_KEY", "OLIVEPRESS_FLOWER_PASSWORD")
PLACES = ("CHECKPOINTS", "TEAM_HOST", "TEAM_ADDRESS", "WORKER_NAME", "TLS_DIR", "STORE")
TEAM_VARIABLES = dict.fromkeys((*SECRETS, *PLACES), "x")
KEY = {"SIGNING_DIR": "/srv/signing"}
PLACE = "/signing"


@pytest.mark.parametrize("files", [ONE_MACHINE, TEAM], ids=["one machine", "team"])
def test_only_the_publisher_is_given_the_key(files: tuple[str, ...]) -> None:
    services = read((*files, "deploy/signing.yml"), TEAM_VARIABLES | KEY)["services"]
    plain = read(files, TEAM_VARIABLES)["services"]

    assert set(services) == set(plain)
    assert [name for name, service in services.items() if service.get("command") == ["publisher"]] == ["publisher"]
    for name, service in services.items():
        variable = service.get("environment", {}).get("OLIVEPRESS_SIGNING_KEY_FILE")
        is_given = (variable, mounts(service).get(PLACE)) == (f"{PLACE}/signing-key.pem", KEY["SIGNING_DIR"])
        assert is_given == (name == "publisher"), name
        assert is_given or (variable is None and PLACE not in mounts(service)), name
        if is_given:
            assert set(mounts(plain[name])) < set(mounts(service))


def test_the_key_is_read_only_and_must_be_named() -> None:
    volumes = read(("docker-compose.yml", "deploy/signing.yml"), TEAM_VARIABLES | KEY)["services"]["publisher"][
        "volumes"
    ]

    assert f"{KEY['SIGNING_DIR']}:{PLACE}:ro" in volumes
    with pytest.raises(MissingVariable, match="SIGNING_DIR"):
        read(("docker-compose.yml", "deploy/signing.yml"), TEAM_VARIABLES)
