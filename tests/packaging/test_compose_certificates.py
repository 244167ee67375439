"""The commands of docs/deployment.md make certificates that a strict client accepts under the names of the files."""

import re
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.packaging.compose_files import REPOSITORY

GUIDE = REPOSITORY / "docs" / "deployment.md"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the guide's commands make."""
    place = tmp_path_factory.mktemp("guide")
    (script,) = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    done = subprocess.run(["sh", "-c", script], cwd=place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return place / "tls"


def shake_hands(server: ssl.SSLContext, authority: Path, name: str) -> None:
    """A whole TLS handshake in memory; raises what the client raises."""
    client = ssl.create_default_context(cafile=str(authority))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    is_done = {ours: False, theirs: False}
    while not all(is_done.values()):
        for side in is_done:
            try:
                side.do_handshake()
                is_done[side] = True
            except ssl.SSLWantReadError:
                continue


def context_of(made: Path, service: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made / f"{service}.crt", made / f"{service}.key")
    return context


@needs_openssl
@pytest.mark.parametrize("service", ["postgres", "redis"])
def test_a_certificate_of_the_guide_is_accepted_under_its_names_only(made: Path, service: str) -> None:
    for name in (service, "press.internal"):
        shake_hands(context_of(made, service), made / "ca.crt", name)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(context_of(made, service), made / "ca.crt", "elsewhere.internal")


@needs_openssl
def test_keys_of_the_guide_are_their_owners_alone(made: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in made.iterdir()}
    assert {name for name, mode in modes.items() if mode == 0o600} >= {"ca.key", "postgres.key", "redis.key"}
    assert {modes["ca.crt"], modes["postgres.crt"], modes["redis.crt"]} == {0o644}
