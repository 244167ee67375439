"""Whatever is changed in a signed version, added to it or taken from it is found; what is as it was signed passes."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from olivepress.delivery import archive
from olivepress.errors import BadArtifact
from olivepress.evidence.document import Evidence
from olivepress.evidence.sealing import Subject, overlay
from olivepress.evidence.signing import SigningKey
from olivepress.evidence.verification import Check, Verification, archive_content, directory_content, verify
from olivepress.foundry.inference_model import read_sums, sums_text
from olivepress.store import DirectoryStore
from tests.unit.signed_versions import PROVENANCE, REPORT, new_key, published, version_of


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return new_key(tmp_path_factory.mktemp("key"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, key: SigningKey) -> Path:
    return published(tmp_path_factory.mktemp("published"), key)[0]


@pytest.fixture
def version(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "version"))


def checked(directory: Path, key: SigningKey | None) -> Verification:
    return verify(directory_content(directory), lambda key_id: key.public if key and key.public.id == key_id else None)


def wrong(found: Verification) -> set[Check]:
    return {finding.check for finding in found.findings if not finding.is_right}


def test_a_version_as_it_was_published_is_verified(version: Path, key: SigningKey) -> None:
    found = checked(version, key)

    assert found.is_verified, found.complaints
    assert [finding.check for finding in found.findings] == [
        Check.FILES,
        Check.SIGNATURE,
        Check.PROVENANCE,
        Check.REPORT,
    ]
    assert found.evidence is not None
    assert found.evidence.version == "support-int4:3"
    assert "SHA256SUMS and evidence.json" in found.findings[0].detail


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda version: (version / name).write_bytes(change((version / name).read_bytes()))


def with_sums_that_agree(version: Path, name: str, content: bytes) -> None:
    """What somebody does who knows of SHA256SUMS and has no key."""
    (version / name).write_bytes(content)
    sums = read_sums((version / "SHA256SUMS").read_text()) | {name: hashlib.sha256(content).hexdigest()}
    (version / "SHA256SUMS").write_text(sums_text(sums))


def with_evidence_that_agrees(version: Path, name: str, content: bytes) -> None:
    """What somebody does who knows of the evidence, too."""
    with_sums_that_agree(version, name, content)
    evidence = json.loads((version / "evidence.json").read_bytes())
    for path in (name, "SHA256SUMS"):
        evidence["files"][path] = hashlib.sha256((version / path).read_bytes()).hexdigest()
    kind, schema_version = evidence.pop("kind"), evidence.pop("schema_version")
    assert (kind, schema_version) == ("olivepress-evidence", 1)
    (version / "evidence.json").write_bytes(Evidence(**evidence).to_json())


def linked(version: Path) -> None:
    (version / "genai_config.json").rename(version.parent / "elsewhere.json")
    (version / "genai_config.json").symlink_to(version.parent / "elsewhere.json")


DAMAGE: dict[str, tuple[Callable[[Path], object], set[Check], str]] = {
    "a flipped bit": (
        rewritten("model.onnx.data", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        {Check.FILES},
        "model.onnx.data is not what SHA256SUMS says",
    ),
    "a missing file": (
        lambda version: (version / "tokenizer/merges.txt").unlink(),
        {Check.FILES},
        "tokenizer/merges.txt is missing",
    ),
    "an added file": (lambda version: (version / "run.py").touch(), {Check.FILES}, "run.py was added"),
    "an added file in a directory": (
        lambda version: (version / "tokenizer/more.txt").touch(),
        {Check.FILES},
        "tokenizer/more.txt was added",
    ),
    "a link in place of a file": (linked, {Check.FILES}, "genai_config.json is no regular file"),
    "a link to a directory": (
        lambda version: (version / "more").symlink_to(version.parent),
        {Check.FILES},
        "more is no regular file",
    ),
    "no SHA256SUMS": (lambda version: (version / "SHA256SUMS").unlink(), {Check.FILES}, "SHA256SUMS is missing"),
    "a SHA256SUMS that is none": (
        rewritten("SHA256SUMS", lambda content: b"\xff"),
        {Check.FILES},
        "SHA256SUMS is no list of checksums",
    ),
    "other weights, with their checksum": (
        lambda version: with_sums_that_agree(version, "model.onnx.data", b"other"),
        {Check.FILES},
        "model.onnx.data is not what evidence.json says",
    ),
    "an added file, with its checksum": (
        lambda version: with_sums_that_agree(version, "run.py", b"import os"),
        {Check.FILES},
        "run.py was added",
    ),
    "other weights, with evidence": (
        lambda version: with_evidence_that_agrees(version, "model.onnx.data", b"other"),
        {Check.SIGNATURE},
        "it is not that of the key",
    ),
    "a better report, with evidence": (
        lambda version: with_evidence_that_agrees(version, "report.json", b'{"schema_version": 1}'),
        {Check.SIGNATURE, Check.REPORT},
        "it is not that of the key",
    ),
    "another provenance, with evidence": (
        lambda version: with_evidence_that_agrees(version, "olivepress.json", b'{"schema_version": 1}'),
        {Check.SIGNATURE, Check.PROVENANCE},
        "it is not that of the key",
    ),
    "no signature": (
        lambda version: (version / "evidence.sig").unlink(),
        {Check.SIGNATURE},
        "evidence.sig is missing",
    ),
    "a cut signature": (
        rewritten("evidence.sig", lambda content: content[:40]),
        {Check.SIGNATURE},
        "evidence.sig has 40 bytes where a signature has 64",
    ),
    "another signature": (
        rewritten("evidence.sig", lambda content: bytes(len(content))),
        {Check.SIGNATURE},
        "it is not that of the key",
    ),
    "evidence that says the same in another form": (
        rewritten("evidence.json", lambda content: json.dumps(json.loads(content)).encode()),
        {Check.EVIDENCE},
        "not in the form that olivepress writes",
    ),
    "no evidence": (
        lambda version: (version / "evidence.json").unlink(),
        {Check.EVIDENCE},
        "evidence.json is missing, and evidence.sig is there",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_every_change_is_found_and_named(name: str, version: Path, key: SigningKey) -> None:
    change, where, words = DAMAGE[name]
    change(version)

    found = checked(version, key)

    assert wrong(found) == where
    assert words in found.complaints
    assert not found.wants_only_the_key
    assert not found.is_unsigned


def test_every_single_file_counts(original: Path, key: SigningKey, tmp_path: Path) -> None:
    names = [path.relative_to(original).as_posix() for path in original.rglob("*") if path.is_file()]
    assert {"inference_model.json", "olivepress.json", "report.json", "SHA256SUMS"} <= set(names)

    for place, name in enumerate(names):
        version = Path(shutil.copytree(original, tmp_path / str(place)))
        content = (version / name).read_bytes()
        (version / name).write_bytes(content[:-1] + bytes([(content[-1] + 1) % 256]))
        assert not checked(version, key).is_verified, name


def test_a_key_that_is_not_known_leaves_only_the_signature_open(version: Path) -> None:
    found = checked(version, None)

    assert not found.is_verified
    assert found.wants_only_the_key
    (version / "model.onnx.data").write_bytes(b"")
    assert not checked(version, None).wants_only_the_key


def test_what_was_published_unsigned_is_right_but_not_verified(tmp_path: Path, key: SigningKey) -> None:
    directory, _ = published(tmp_path, None)

    found = checked(directory, key)

    assert found.is_unsigned
    assert not found.is_verified
    assert wrong(found) == {Check.EVIDENCE}
    (directory / "model.onnx.data").write_bytes(b"")
    assert not checked(directory, key).is_unsigned


def test_a_package_that_brings_evidence_along_is_not_published(tmp_path: Path, key: SigningKey) -> None:
    store = DirectoryStore(tmp_path / "store")
    _, manifest = published(tmp_path, key, store=store)
    subject = Subject("default", "other-int4", 1, PROVENANCE, REPORT, 1.0)

    for signer in (key, None):
        with pytest.raises(BadArtifact, match=r"evidence\.json and evidence\.sig, which only publishing writes"):
            overlay(manifest, b"{}", subject, signer)


def test_an_archive_is_verified_without_being_unpacked(tmp_path: Path, key: SigningKey) -> None:
    directory, manifest = published(tmp_path, key)
    version = version_of(manifest)
    seen: list[tuple[int, int]] = []

    def found_in(name: str, **changes: Any) -> Verification:
        archive.write_archive(tmp_path / name, version | changes, manifest, directory)
        content = archive_content(archive.read_archive(tmp_path / name), lambda *both: seen.append(both))
        return verify(content, lambda key_id: key.public)

    before = sorted(tmp_path.rglob("*"))
    assert found_in("good.tar").is_verified
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "good.tar"])
    assert seen[-1] == (manifest.size_bytes, manifest.size_bytes)
    # What an archive says beside the files is not in SHA256SUMS, and is signed nevertheless.
    assert wrong(found_in("report.tar", report=REPORT | {"tokens_per_s": 9000.0})) == {Check.REPORT}
    assert wrong(found_in("provenance.tar", provenance=PROVENANCE | {"recipe": {}})) == {Check.PROVENANCE}


def test_a_damaged_file_in_an_archive_is_named(tmp_path: Path, key: SigningKey) -> None:
    directory, manifest = published(tmp_path, key)
    file = tmp_path / "version.tar"
    archive.write_archive(file, version_of(manifest), manifest, directory)
    content = file.read_bytes()
    place = content.index(bytes(range(256)) * 4)
    file.write_bytes(content[:place] + b"\xff" + content[place + 1 :])

    found = verify(archive_content(archive.read_archive(file)), lambda key_id: key.public)

    assert "model.onnx.data is damaged" in found.complaints
