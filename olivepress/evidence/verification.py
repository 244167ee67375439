"""Holds a version's files against SHA256SUMS, its evidence and the signature of that. Needs no stack and no network."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from olivepress.delivery.archive import Archive, file_contents
from olivepress.errors import BadArtifact
from olivepress.evidence.document import (
    EVIDENCE_FILE,
    PROVENANCE_FILE,
    REPORT_FILE,
    SIGNATURE_FILE,
    UNSIGNED_FILES,
    Evidence,
    digest_of_provenance_file,
    digest_of_report_file,
    object_in,
)
from olivepress.evidence.signing import SIGNATURE_BYTES, PublicKey
from olivepress.foundry.inference_model import INFERENCE_MODEL_FILE, SUMS_FILE, read_sums
from olivepress.jobs import digest_of

READ_BYTES = 1 << 20
# Of what is read whole: evidence lists files, and a report holds answers.
SMALL_BYTES = 64 * 1024 * 1024
SHOWN = 5
UNSIGNED = f"there is no {EVIDENCE_FILE}: it was published unsigned, or somebody took it away"

OnBytes = Callable[[int, int], None]
FindKey = Callable[[str], PublicKey | None]
"""Given a key's id, the key if it is one to rely on."""


class Check(StrEnum):
    """What is looked at."""

    FILES = "files"
    EVIDENCE = "evidence"
    SIGNATURE = "signature"
    PROVENANCE = "provenance"
    REPORT = "report"


@dataclass(frozen=True)
class Finding:
    """What one check gave."""

    check: Check
    is_right: bool
    detail: str


class Signed(Protocol):
    """What a signature vouches for: a version, or a later report of one."""

    @property
    def team(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def number(self) -> int: ...

    @property
    def version(self) -> str: ...

    @property
    def package_digest(self) -> str: ...

    @property
    def report_digest(self) -> str: ...

    @property
    def signed_at(self) -> str: ...

    @property
    def key_id(self) -> str: ...


@dataclass(frozen=True)
class Verification:
    """What all checks gave; `evidence` where there is any that can be read."""

    findings: tuple[Finding, ...]
    evidence: Signed | None
    is_key_known: bool = True

    @property
    def is_verified(self) -> bool:
        """Whether every check was passed."""
        return all(finding.is_right for finding in self.findings)

    @property
    def is_unsigned(self) -> bool:
        """Whether nothing is wrong but that it was published without a signature."""
        wrong = [finding for finding in self.findings if not finding.is_right]
        return self.evidence is None and [finding.detail for finding in wrong] == [UNSIGNED]

    @property
    def wants_only_the_key(self) -> bool:
        """Whether nothing is wrong but that the key is not known here."""
        wrong = [finding.check for finding in self.findings if not finding.is_right]
        return not self.is_key_known and wrong == [Check.SIGNATURE]

    @property
    def complaints(self) -> str:
        """What is wrong, in one line."""
        return printable(
            "; ".join(f"{finding.check}: {finding.detail}" for finding in self.findings if not finding.is_right)
        )


@dataclass(frozen=True)
class Content:
    """The files of a version, wherever they lie."""

    sums: Mapping[str, str]
    """Path → SHA-256 of every file that is there."""
    read: Callable[[str], bytes]
    """The content of a small file that is there."""
    problems: tuple[str, ...] = ()
    """What is no file at all, or not as its surroundings say."""
    described: Mapping[str, Any] = field(default_factory=dict)
    """What came with the files and says `report` and `provenance`, as an archive does."""


def printable(text: str) -> str:
    """Names come from files that nobody has vouched for yet: none may move the cursor or begin a line of its own."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def directory_content(directory: Path, on_bytes: OnBytes | None = None) -> Content:
    """The files of a directory, each read once. Links are problems: what they lead to is not the version's.

    Raises:
        OSError: one cannot be read.
    """
    files, problems = {}, []
    for path in sorted(_entries(directory)):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink() or not path.is_file():
            problems.append(f"{name} is no regular file")
        else:
            files[name] = path
    total_bytes = sum(path.stat().st_size for path in files.values())
    sums, done_bytes = {}, 0
    for name, path in files.items():
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(READ_BYTES):
                digest.update(block)
                done_bytes += len(block)
                if on_bytes:
                    on_bytes(done_bytes, total_bytes)
        sums[name] = digest.hexdigest()
    return Content(sums, lambda name: _read_small(files[name]), tuple(problems))


def archive_content(archive: Archive, on_bytes: OnBytes | None = None) -> Content:
    """The files in an archive, each read once and none written.

    Raises:
        BadArtifact: an entry is not the one that belongs there.
    """
    sums, small, done_bytes = {}, {}, 0
    for entry, blocks in file_contents(archive):
        digest, kept = hashlib.sha256(), bytearray()
        is_small = entry.path in {SUMS_FILE, INFERENCE_MODEL_FILE, PROVENANCE_FILE, REPORT_FILE, *UNSIGNED_FILES}
        for block in blocks:
            digest.update(block)
            done_bytes += len(block)
            if is_small and len(kept) <= SMALL_BYTES:
                kept += block
            if on_bytes:
                on_bytes(done_bytes, archive.manifest.size_bytes)
        sums[entry.path] = digest.hexdigest()
        small[entry.path] = bytes(kept)
    problems = tuple(f"{entry.path} is damaged" for entry in archive.manifest.files if sums[entry.path] != entry.sha256)
    return Content(sums, small.__getitem__, problems, archive.version)


def verify(content: Content, find_key: FindKey) -> Verification:
    """Every check of a version, those after a failed one too as far as they mean something."""
    evidence, findings = None, []
    try:
        evidence = Evidence.parse(content.read(EVIDENCE_FILE)) if EVIDENCE_FILE in content.sums else None
    except BadArtifact as error:
        findings.append(Finding(Check.EVIDENCE, False, str(error)))
    findings.insert(0, _files(content, evidence))
    if evidence is None:
        if EVIDENCE_FILE not in content.sums:
            half = f"{EVIDENCE_FILE} is missing, and {SIGNATURE_FILE} is there"
            findings.append(Finding(Check.EVIDENCE, False, half if SIGNATURE_FILE in content.sums else UNSIGNED))
        return Verification(tuple(findings), None)
    key = find_key(evidence.key_id)
    findings += _labels(content, evidence)
    findings.append(_signature(content, evidence, key))
    findings += [_provenance(content, evidence), _report(content, evidence)]
    return Verification(tuple(findings), evidence, key is not None)


def _files(content: Content, evidence: Evidence | None) -> Finding:
    wrong = list(content.problems)
    expected: dict[str, dict[str, str]] = {}
    if SUMS_FILE in content.sums:
        try:
            listed = read_sums(content.read(SUMS_FILE).decode("utf-8"))
            expected[SUMS_FILE] = {**listed, SUMS_FILE: content.sums[SUMS_FILE]}
        except (BadArtifact, UnicodeDecodeError):
            wrong.append(f"{SUMS_FILE} is no list of checksums")
    else:
        wrong.append(f"{SUMS_FILE} is missing")
    if evidence is not None:
        expected[EVIDENCE_FILE] = dict(evidence.files)
    wrong = list(dict.fromkeys([*wrong, *_differences(content.sums, expected)]))
    if wrong:
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        return Finding(Check.FILES, False, ", ".join(wrong[:SHOWN]) + more)
    sources = " and ".join(expected)
    return Finding(
        Check.FILES, True, f"{len(content.sums)}, none missing, none added, each by its SHA-256 in {sources}"
    )


def _differences(sums: Mapping[str, str], expected: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    told: set[str] = set()
    for source, wanted in expected.items():
        is_there = sums.keys() - UNSIGNED_FILES
        for path in sorted((wanted.keys() | is_there) - told):
            if path not in sums:
                what = f"{path} is missing"
            elif path not in wanted:
                what = f"{path} was added"
            elif sums[path] != wanted[path]:
                what = f"{path} is not what {source} says"
            else:
                continue
            told.add(path)
            yield what


def _signature(content: Content, evidence: Evidence, key: PublicKey | None) -> Finding:
    if SIGNATURE_FILE not in content.sums:
        return Finding(Check.SIGNATURE, False, f"{SIGNATURE_FILE} is missing")
    if key is None:
        return Finding(
            Check.SIGNATURE, False, f"by the key {evidence.key_id}, which is not one that this machine knows"
        )
    signature = content.read(SIGNATURE_FILE)
    if len(signature) != SIGNATURE_BYTES:
        detail = f"{SIGNATURE_FILE} has {len(signature)} bytes where a signature has {SIGNATURE_BYTES}"
        return Finding(Check.SIGNATURE, False, detail)
    if not key.has_signed(content.read(EVIDENCE_FILE), signature):
        detail = f"it is not that of the key {key.id}: {EVIDENCE_FILE} was changed, or {SIGNATURE_FILE}"
        return Finding(Check.SIGNATURE, False, detail)
    return Finding(Check.SIGNATURE, True, f"by the key {key.id}, at {evidence.signed_at}")


def _labels(content: Content, evidence: Evidence) -> Iterator[Finding]:
    """Where the files, or what came with them, call themselves another version than the one that was signed."""
    said: list[Mapping[str, Any]] = [content.described] if content.described else []
    with contextlib.suppress(KeyError, BadArtifact):
        said.append(object_in(PROVENANCE_FILE, content.read(PROVENANCE_FILE)))
    names = {f"{one['model']}:{one.get('number', one.get('version'))}" for one in said if "model" in one}
    if other := sorted(names - {evidence.version}):
        detail = f"it is of {evidence.version}, and these files call themselves {', '.join(other)}"
        yield Finding(Check.EVIDENCE, False, detail)


def _provenance(content: Content, evidence: Evidence) -> Finding:
    try:
        found = {digest_of_provenance_file(content.read(PROVENANCE_FILE))} if PROVENANCE_FILE in content.sums else set()
        found |= {digest_of(content.described["provenance"])} if content.described else set()
    except (BadArtifact, ValueError):
        found = set()
    if found != {evidence.provenance_digest}:
        return Finding(Check.PROVENANCE, False, "it is not the one that was signed")
    return Finding(Check.PROVENANCE, True, f"as it was signed, of package {evidence.package_digest[:12]}…")


def _report(content: Content, evidence: Evidence) -> Finding:
    try:
        found = {digest_of_report_file(content.read(REPORT_FILE))} if REPORT_FILE in content.sums else set()
        found |= {digest_of(content.described["report"])} if content.described else set()
    except (BadArtifact, ValueError):
        found = set()
    if found != {evidence.report_digest}:
        return Finding(Check.REPORT, False, "it is not the one that was signed")
    return Finding(Check.REPORT, True, "as it was signed")


def _entries(directory: Path) -> Iterator[Path]:
    """Everything in a directory that is no directory; links are not followed."""
    for place, folders, names in os.walk(directory):
        # A link to a directory is listed among the directories.
        yield from (Path(place, name) for name in (*names, *folders) if name in names or Path(place, name).is_symlink())


def _read_small(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(SMALL_BYTES + 1)
