"""Finds damage in a store: reads every manifest and every chunk, beside writers, readers and a collector.

Memory: as many chunks of up to 16 MiB as the store's threads hold, and the name of every chunk, about 200 bytes each.
What it meets may be on its way in or out of the store, so whatever looked wrong is looked at again in the end.

How far it came is noted in the store every few seconds. One that was killed is gone on with by the next: chunks before
the noted one are not read again, but those that were found damaged are.
"""

import contextlib
import errno
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from olivepress.errors import BadArtifact
from olivepress.store.artifacts import in_order, sha256_of
from olivepress.store.collecting import NONE, Amount
from olivepress.store.keeping import HeldPart, Keeper, Part
from olivepress.store.manifest import CHUNK_LIMIT_BYTES, Manifest, is_sha256
from olivepress.store.places import UNREADABLE
from olivepress.store.protocol import Progress

NOTE_EVERY_S = 5.0
# What was right a week ago is read again.
NOTE_HOLDS_S = 7 * 86_400.0


class Damage(StrEnum):
    """What is wrong with a part."""

    MISSING = "missing"
    LENGTH = "wrong length"
    ALTERED = "altered"
    UNREADABLE = "unreadable"
    CLOSED = "closed"
    """To the user who looks: its permissions."""


@dataclass(frozen=True)
class Finding:
    """A part that is not as it should be."""

    part: Part
    damage: Damage


@dataclass(frozen=True)
class Use:
    """A file of an artifact that has a chunk."""

    digest: str
    path: str


@dataclass
class Scan:
    """What a check saw."""

    artifacts: dict[str, int] = field(default_factory=dict)
    """Digests of the artifacts whose manifests are right, and the bytes of their files."""
    chunks: Amount = NONE
    read_bytes: int = 0
    resumed_bytes: int = 0
    """Of chunks that an earlier check had read, which was interrupted."""
    findings: list[Finding] = field(default_factory=list)
    uses: dict[str, list[Use]] = field(default_factory=dict)
    """Where each damaged or missing chunk belongs; one that no artifact has is not here."""
    strays: Amount = NONE
    """Chunks that no artifact has: of a put that is under way, or garbage."""

    @property
    def hurt(self) -> dict[str, list[str]]:
        """Artifacts that cannot be read in full, and their files that are the reason; a manifest has none."""
        found: dict[str, list[str]] = {}
        for finding in self.findings:
            if finding.part.is_manifest:
                found.setdefault(finding.part.sha256, [])
            for use in self.uses.get(finding.part.sha256, []):
                found.setdefault(use.digest, []).append(use.path)
        return {digest: sorted(set(paths)) for digest, paths in found.items()}


@dataclass
class Checker:
    """One check of a store.

    Args:
        is_fast: only whether everything is there in full length; content is not read, but for manifests.
        on_progress: called with the bytes of chunks done and in all.
        go_on: called between small pieces of work; what it raises ends the check, and the next goes on.
        clock: seconds since 1970.
    """

    keeper: Keeper
    is_fast: bool = False
    on_progress: Progress | None = None
    go_on: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.time

    def run(self, *, anew: bool = False) -> Scan:
        """Check the store; `anew`: what an interrupted check has read counts for nothing."""
        scan = Scan()
        position, before = ("", []) if anew or self.is_fast else self._resumed()
        sizes = self._manifests(scan)
        found = [*before, *self._listed(scan, sizes, position)]
        if not self.is_fast:
            found += self._contents(scan, position, before)
        scan.findings += self._looked_at_again(found, sizes)
        self._find_uses(scan)
        if not self.is_fast:
            self.keeper.write_note(None)
        return scan

    def _manifests(self, scan: Scan) -> dict[str, int]:
        """The size of each chunk that an artifact has."""
        sizes: dict[str, int] = {}
        for held, content in in_order(self._read, self.keeper.manifests(), self.keeper.store.threads):
            self.go_on()
            if content is None:
                continue
            if isinstance(content, Damage):
                scan.findings.append(Finding(held.part, content))
                continue
            try:
                manifest = _parsed(held.part, content)
            except BadArtifact:
                scan.findings.append(Finding(held.part, Damage.ALTERED))
                continue
            scan.artifacts[held.part.sha256] = manifest.size_bytes
            sizes |= {chunk.sha256: chunk.size_bytes for chunk in manifest.chunks()}
        return sizes

    def _read(self, held: HeldPart) -> tuple[HeldPart, bytes | Damage | None]:
        try:
            return held, self.keeper.read(held.part)
        except FileNotFoundError:
            return held, None  # collected just now
        except OSError as error:
            return held, _unreadable(error)

    def _listed(self, scan: Scan, sizes: dict[str, int], position: str) -> Iterator[Finding]:
        """What the listing of the chunks tells: which are missing, which have a wrong length."""
        unseen = dict(sizes)
        for held in self.keeper.chunks():
            self.go_on()
            scan.chunks += Amount(1, held.size_bytes)
            scan.resumed_bytes += held.size_bytes if held.part.sha256 <= position else 0
            expected = unseen.pop(held.part.sha256, None)
            if expected is None:
                scan.strays += Amount(1, held.size_bytes)
            if held.size_bytes != (expected or held.size_bytes) or not 0 < held.size_bytes <= CHUNK_LIMIT_BYTES:
                yield Finding(held.part, Damage.LENGTH)
        yield from (Finding(Part(sha256), Damage.MISSING) for sha256 in sorted(unseen))

    def _contents(self, scan: Scan, position: str, before: list[Finding]) -> list[Finding]:
        """The chunks whose content is not what their names say; how far this came is noted now and then."""
        found, noted_at = list(before), time.monotonic()
        done_bytes = scan.resumed_bytes
        work = in_order(self._verified, self.keeper.chunks(position), self.keeper.store.threads)
        with contextlib.closing(work):
            for held, damage in work:
                self.go_on()
                done_bytes += held.size_bytes
                scan.read_bytes += held.size_bytes
                if damage is not None:
                    found.append(Finding(held.part, damage))
                if self.on_progress:
                    self.on_progress(done_bytes, scan.chunks.size_bytes)
                if time.monotonic() - noted_at >= NOTE_EVERY_S:
                    self._note(held.part.sha256, found)
                    noted_at = time.monotonic()
        return found[len(before) :]

    def _verified(self, held: HeldPart) -> tuple[HeldPart, Damage | None]:
        if held.size_bytes > CHUNK_LIMIT_BYTES:
            return held, Damage.LENGTH
        try:
            return held, None if self.keeper.is_right(held.part) else Damage.ALTERED
        except FileNotFoundError:  # collected just now, or a link that leads nowhere
            return held, Damage.MISSING
        except OSError as error:
            return held, _unreadable(error)

    def _damage(self, part: Part) -> Damage | None:
        """What is wrong with a part now; None also for one that is gone."""
        try:
            return None if self.keeper.is_right(part) else Damage.ALTERED
        except FileNotFoundError:
            return None
        except OSError as error:
            return _unreadable(error)

    def _looked_at_again(self, found: list[Finding], sizes: dict[str, int]) -> Iterator[Finding]:
        """Each part once, if it is still wrong."""
        first: dict[Part, Finding] = {}
        for finding in found:
            first.setdefault(finding.part, finding)
        for finding in first.values():
            self.go_on()
            if finding.damage is not Damage.MISSING:
                if (now := self._damage(finding.part)) is not None:
                    yield finding if now is Damage.ALTERED else Finding(finding.part, now)
                elif finding.part.sha256 in sizes and not self._is_there(finding.part):
                    yield Finding(finding.part, Damage.MISSING)
            elif not self._is_there(finding.part):
                now = self._damage(finding.part)
                yield finding if now is None else Finding(finding.part, now)

    def _is_there(self, part: Part) -> bool:
        try:
            self.keeper.read(part)
        except FileNotFoundError:
            return False
        except OSError as error:
            _unreadable(error)
            return False
        return True

    def _find_uses(self, scan: Scan) -> None:
        """Where damaged chunks belong; of what only an artifact had that is gone by now, nothing is said."""
        bad = {finding.part.sha256 for finding in scan.findings if not finding.part.is_manifest}
        if bad:
            for digest in list(scan.artifacts):
                self.go_on()
                try:
                    manifest = _parsed(Part(digest, True), self.keeper.read(Part(digest, True)))
                except (FileNotFoundError, BadArtifact):
                    del scan.artifacts[digest]
                    continue
                for file in manifest.files:
                    for chunk in set(file.chunks):
                        if chunk.sha256 in bad:
                            scan.uses.setdefault(chunk.sha256, []).append(Use(digest, file.path))
        scan.findings = [
            finding for finding in scan.findings
            if finding.damage is not Damage.MISSING or finding.part.sha256 in scan.uses
        ]  # fmt: skip

    def _note(self, position: str, found: list[Finding]) -> None:
        value = {
            "schema_version": 1,
            "noted_at": self.clock(),
            "position": position,
            "damaged": [[finding.part.sha256, finding.damage.value] for finding in found],
        }
        # A bit that flips in the position would leave chunks unread.
        self.keeper.write_note(json.dumps(value | {"sha256": _digest_of(value)}).encode())

    def _resumed(self) -> tuple[str, list[Finding]]:
        """The last chunk that an interrupted check has read, and what it had found."""
        content = self.keeper.read_note()
        if content is None:
            return "", []
        try:
            value = json.loads(content)
            is_whole = value.pop("sha256") == _digest_of(value) and value["schema_version"] == 1
            if not is_whole or not 0 <= self.clock() - value["noted_at"] <= NOTE_HOLDS_S:
                return "", []
            found = [Finding(Part(sha256), Damage(damage)) for sha256, damage in value["damaged"]]
            names = [value["position"], *(finding.part.sha256 for finding in found)]
            return (value["position"], found) if all(map(is_sha256, names)) else ("", [])
        except (ValueError, KeyError, TypeError, AttributeError):  # not ours, or damaged as the rest may be
            return "", []


def _digest_of(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _parsed(part: Part, content: bytes) -> Manifest:
    """Raises: BadArtifact."""
    if sha256_of(content) != part.sha256:
        raise BadArtifact(f"the manifest {part.sha256} has other content than its name says")
    return Manifest.parse(content)


def _unreadable(error: OSError) -> Damage:
    """What a disk says of a broken sector, a closed or a looping path; raises the error where it says another thing."""
    if error.errno not in UNREADABLE:
        raise error
    return Damage.CLOSED if error.errno == errno.EACCES else Damage.UNREADABLE
