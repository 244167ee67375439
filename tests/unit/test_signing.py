"""A signature holds for what was signed by whom; a private key that others can read is not used."""

import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from olivepress.errors import NotAllowed, PermanentError
from olivepress.evidence.signing import PublicKey, SigningKey
from tests.unit.signed_versions import new_key


def test_a_key_has_signed_what_it_signed_and_nothing_else(tmp_path: Path) -> None:
    key, other = new_key(tmp_path), new_key(tmp_path, "other.pem")
    signature = key.sign(b"content")

    assert key.public.has_signed(b"content", signature)
    assert not key.public.has_signed(b"Content", signature)
    assert not other.public.has_signed(b"content", signature)
    assert not key.public.has_signed(b"content", signature[:-1])
    assert not key.public.has_signed(b"content", b"")


def test_a_new_key_is_for_its_owner_only_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "signing-key.pem"

    first, second = SigningKey.load_or_create(file), SigningKey.load_or_create(file)

    assert first.public == second.public
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["signing-key.pem"]


def test_of_several_that_make_a_key_at_once_all_get_the_same(tmp_path: Path) -> None:
    found: list[str] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        found.append(SigningKey.load_or_create(tmp_path / "key.pem").public.id)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o602])
def test_a_key_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "signing-key.pem"
    new_key(tmp_path)
    file.chmod(mode)

    with pytest.raises(NotAllowed, match="chmod 600"):
        SigningKey.load(file)


def test_a_key_that_a_group_may_read_is_used(tmp_path: Path) -> None:
    key = new_key(tmp_path)
    (tmp_path / "signing-key.pem").chmod(0o440)

    assert SigningKey.load(tmp_path / "signing-key.pem").public == key.public


def test_a_key_file_that_is_missing_or_holds_something_else_is_named(tmp_path: Path) -> None:
    other = tmp_path / "rsa.pem"
    other.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    other.chmod(0o600)

    with pytest.raises(NotAllowed, match=r"none\.pem cannot be read"):
        SigningKey.load(tmp_path / "none.pem")
    with pytest.raises(PermanentError, match=r"rsa\.pem holds no Ed25519 private key"):
        SigningKey.load(other)
    with pytest.raises(PermanentError, match=r"rsa\.pem holds no Ed25519 public key"):
        PublicKey.from_pem_file(other)


def test_nothing_shows_the_private_key(tmp_path: Path) -> None:
    key = new_key(tmp_path)
    lines = (tmp_path / "signing-key.pem").read_text().splitlines()[1:-1]

    assert not any(line in repr(key) + str(vars(key)) for line in lines)


def test_a_public_key_survives_every_form_that_it_is_written_in(tmp_path: Path) -> None:
    public = new_key(tmp_path).public
    (tmp_path / "public.pem").write_text(public.pem)

    assert PublicKey.from_pem_file(tmp_path / "public.pem") == public
    assert PublicKey.from_text(public.text) == public
    assert len(public.id) == 16
    for text in ("", "AAAA", "not base64!", public.text + "A"):
        with pytest.raises(PermanentError):
            PublicKey.from_text(text)


def test_openssl_understands_key_and_signature(tmp_path: Path) -> None:
    key = new_key(tmp_path)
    (tmp_path / "public.pem").write_text(key.public.pem)
    (tmp_path / "evidence.json").write_bytes(b"content")
    (tmp_path / "evidence.sig").write_bytes(key.sign(b"content"))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "public.pem", "-rawin", "-in", "evidence.json"]
    try:
        done = subprocess.run([*command, "-sigfile", "evidence.sig"], cwd=tmp_path, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no openssl is installed")
    if b"nknown option" in done.stderr:
        pytest.skip("this openssl is too old for Ed25519")

    assert done.returncode == 0, done.stderr


def test_a_key_hands_over_to_the_key_that_it_signed_and_to_no_other(tmp_path: Path) -> None:
    old, new, other = (new_key(tmp_path, name) for name in ("old.pem", "new.pem", "other.pem"))
    endorsement = old.endorse(new.public)

    assert new.public.is_endorsed(old.public, endorsement)
    assert not other.public.is_endorsed(old.public, endorsement)
    assert not new.public.is_endorsed(other.public, endorsement)
    # What is signed as evidence is no handing over.
    assert not new.public.is_endorsed(old.public, old.sign(new.public.raw))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_key_that_this_user_may_not_read_is_named(tmp_path: Path) -> None:
    new_key(tmp_path)
    (tmp_path / "signing-key.pem").chmod(0)

    with pytest.raises(NotAllowed, match="cannot be read"):
        SigningKey.load(tmp_path / "signing-key.pem")
