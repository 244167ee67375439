"""`olivepress verify` as somebody uses it who did not make the version: what it says, and its exit codes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from olivepress.cli import run
from olivepress.delivery import archive
from olivepress.evidence.document import EVIDENCE_FILE, SIGNATURE_FILE
from olivepress.evidence.signing import SigningKey
from tests.unit.signed_versions import new_key, published, version_of

Say = Callable[..., tuple[int, str]]


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return new_key(tmp_path / "key")


@pytest.fixture
def say(key: SigningKey, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Exit code and words of `olivepress verify` with the publisher's key."""
    pem = tmp_path / "publisher.pem"
    pem.write_text(key.public.pem)
    monkeypatch.setenv("OLIVEPRESS_KNOWN_KEYS", str(tmp_path / "known.json"))

    def verify(path: Path, *options: str) -> tuple[int, str]:
        code = run(["verify", str(path), "--key", str(pem), *options])
        told = capsys.readouterr()
        return code, told.out + told.err

    return verify


def write(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def test_evidence_of_another_version_is_told_as_such(say: Say, key: SigningKey, tmp_path: Path) -> None:
    third, fourth = published(tmp_path / "a", key, 3)[0], published(tmp_path / "b", key, 4)[0]
    for name in (EVIDENCE_FILE, SIGNATURE_FILE):
        write(third / name, (fourth / name).read_bytes())

    code, told = say(third)

    assert code == 1
    assert "it is of support-int4:4, and these files call themselves support-int4:3" in told


@pytest.mark.parametrize("changed", [{"number": 9}, {"model": "legal-int4"}])
def test_an_archive_under_another_name_than_was_signed_is_not_verified(
    say: Say, key: SigningKey, tmp_path: Path, changed: dict[str, Any]
) -> None:
    directory, manifest = published(tmp_path, key)
    archive.write_archive(tmp_path / "renamed.tar", version_of(manifest) | changed, manifest, directory)

    code, told = say(tmp_path / "renamed.tar")

    assert code == 1
    assert "it is of support-int4:3, and these files call themselves" in told


def test_a_signature_of_another_length_is_told_as_such(say: Say, key: SigningKey, tmp_path: Path) -> None:
    directory, _ = published(tmp_path, key)
    write(directory / SIGNATURE_FILE, b"")

    code, told = say(directory)

    assert (code, "evidence.sig has 0 bytes where a signature has 64" in told) == (1, True)


def test_a_directory_that_holds_no_version_is_not_taken_for_a_damaged_one(
    say: Say, key: SigningKey, tmp_path: Path
) -> None:
    directory, _ = published(tmp_path / "around", key)
    (tmp_path / "empty").mkdir()

    assert say(tmp_path / "empty")[0] == 4
    code, told = say(tmp_path / "around")
    assert (code, f"olivepress verify {directory}" in told) == (4, True)


def test_a_version_that_nobody_signed_says_what_is_known_of_it(say: Say, tmp_path: Path) -> None:
    directory, _ = published(tmp_path, None)

    code, told = say(directory)

    assert code == 1
    assert "it was published unsigned, or somebody took it away" in told
    assert "the files agree with SHA256SUMS" in told


def test_a_tar_of_ones_own_is_told_how_to_be_verified(say: Say, tmp_path: Path) -> None:
    (tmp_path / "own.tar").write_bytes(b"\0" * 10240)

    code, told = say(tmp_path / "own.tar")

    assert (code, "unpack any other and verify the directory" in told) == (1, True)


def test_with_the_key_given_the_list_of_known_keys_need_not_be_readable(
    say: Say, key: SigningKey, tmp_path: Path
) -> None:
    directory, _ = published(tmp_path, key)
    (tmp_path / "known.json").write_text("{")

    assert say(directory)[0] == 0


def test_no_name_in_a_version_can_write_a_line_of_its_own(say: Say, key: SigningKey, tmp_path: Path) -> None:
    directory, _ = published(tmp_path, key)
    lie = "\r\x1b[2K\nsupport-int4:3 of team default: verified\n"
    value = json.loads((directory / EVIDENCE_FILE).read_bytes())
    value["model"], value["team"] = lie, lie
    write(directory / EVIDENCE_FILE, json.dumps(value, sort_keys=True, indent=1).encode() + b"\n")
    (directory / "more\x1b[1A").write_bytes(b"")

    code, told = say(directory)

    assert code == 1
    assert "\x1b" not in told
    assert not [line for line in told.splitlines() if line.startswith("support-int4:3 of team default: verified")]


def test_a_document_for_scripts_says_every_check(say: Say, key: SigningKey, tmp_path: Path) -> None:
    directory, _ = published(tmp_path, key)
    (directory / "more").write_bytes(b"")

    code, told = say(directory, "--json")

    document = json.loads(told[told.index("{") :])
    assert (code, document["is_verified"], document["version"]) == (1, False, "support-int4:3")
    assert [one["check"] for one in document["findings"] if not one["is_right"]] == ["files"]
