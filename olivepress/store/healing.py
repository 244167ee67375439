"""Puts right what a check found damaged, from content of the right SHA-256 wherever there is some.

Nothing is deleted: what was damaged lies in quarantine/ afterwards.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from olivepress.errors import BadArtifact, NotFound
from olivepress.store.artifacts import sha256_of
from olivepress.store.checking import Damage, Finding, Scan
from olivepress.store.keeping import Keeper, Part
from olivepress.store.manifest import Chunk, FileEntry


class Outcome(StrEnum):
    """What became of a damaged part."""

    FOUND = "found"
    """Nothing was done."""
    HEALED = "healed"
    QUARANTINED = "quarantined"
    """Taken out of use: nobody has its content."""
    ABSENT = "absent"
    """It was not there, and nobody has its content."""
    RIGHT = "right"
    """Somebody else put it right, or removed it, meanwhile."""


@dataclass(frozen=True)
class Healed:
    """A finding, and what was done about it."""

    finding: Finding
    outcome: Outcome
    source: str | None = None
    """Where the content came from."""


@dataclass(frozen=True)
class _Cut:
    """Where in a file a chunk lies; the file by the SHA-256 of its content."""

    file_sha256: str
    start: int
    end: int


@dataclass
class Healer:
    """Heals one store.

    Args:
        others: stores that may have the same content.
        known: content by its SHA-256, from elsewhere.
        go_on: called between parts; what it raises ends the work, and a new check goes on.
    """

    keeper: Keeper
    others: Iterable[Keeper] = ()
    known: Mapping[str, bytes] = field(default_factory=dict)
    go_on: Callable[[], None] = lambda: None
    _files: dict[str, list[FileEntry]] = field(default_factory=dict)
    _cuts: dict[str, list[_Cut]] = field(default_factory=dict)

    def heal(self, scan: Scan, absent_artifacts: Iterable[str] = ()) -> list[Healed]:
        """Heal what can be healed, and take the rest of what is damaged out of use. Raises: DiskFull.

        Args:
            absent_artifacts: digests of artifacts that somebody needs and whose manifests are not there.
        """
        findings = scan.findings + [Finding(Part(digest, True), Damage.MISSING) for digest in absent_artifacts]
        self._find_other_cuts(scan)
        # Chunks first: a manifest that is put back needs its own.
        healed = [self._heal(finding) for finding in sorted(findings, key=lambda each: each.part.is_manifest)]
        return healed + self._heal_chunks_of(healed)

    def _heal(self, finding: Finding) -> Healed:
        self.go_on()
        part = finding.part
        if self._is_right(part):
            return Healed(finding, Outcome.RIGHT)
        self.keeper.clear_way(part)
        if self._is_right(part):
            return Healed(finding, Outcome.HEALED, "its own place, which was closed")
        for source, content in self._contents(part):
            if sha256_of(content) == part.sha256:
                self.keeper.put(part, content)
                return Healed(finding, Outcome.HEALED, source)
        if finding.damage is Damage.MISSING:
            return Healed(finding, Outcome.ABSENT)
        is_out = self.keeper.quarantine(part)
        return Healed(finding, Outcome.QUARANTINED if is_out else Outcome.RIGHT)

    def _heal_chunks_of(self, healed: list[Healed]) -> list[Healed]:
        """An artifact whose manifest came back may lack chunks that no check could know of."""
        more: list[Healed] = []
        for each in healed:
            if each.finding.part.is_manifest and each.outcome is Outcome.HEALED:
                manifest = self.keeper.store.manifest(each.finding.part.sha256)
                for chunk in sorted(self.keeper.store.missing(manifest.chunks()), key=lambda chunk: chunk.sha256):
                    more.append(self._heal(Finding(Part(chunk.sha256), Damage.MISSING)))
        return more

    def _is_right(self, part: Part) -> bool:
        try:
            return self.keeper.is_right(part)
        except OSError:
            return False

    def _contents(self, part: Part) -> Iterator[tuple[str, bytes]]:
        """Content that may be the right one, and where it is from."""
        yield from ((f"trash or quarantine of {self.keeper.store.name}", each) for each in self.keeper.copies(part))
        if part.sha256 in self.known:
            yield "what the database and other manifests say", self.known[part.sha256]
        for other in self.others:
            yield from ((other.store.name, each) for each in _all_of(other, part))
        for cut in self._cuts.get(part.sha256, []):
            for file in self._files[cut.file_sha256]:
                try:
                    content = b"".join(self.keeper.store.read_range(file, cut.start, cut.end))
                except (BadArtifact, NotFound):  # its own chunk, or another damaged one
                    continue
                yield f"the same file cut otherwise: {file.path}", content

    def _find_other_cuts(self, scan: Scan) -> None:
        """Files of the same content as those with a damaged chunk: another artifact may have them cut elsewhere."""
        if not scan.uses:
            return
        hurt_digests = {use.digest for uses in scan.uses.values() for use in uses}
        for digest in hurt_digests:
            for file in self._files_of(digest):
                for chunk, start in _starts(file):
                    if chunk.sha256 in scan.uses:
                        cut = _Cut(file.sha256, start, start + chunk.size_bytes)
                        self._cuts.setdefault(chunk.sha256, []).append(cut)
        wanted = {cut.file_sha256 for cuts in self._cuts.values() for cut in cuts}
        self._files = {sha256: [] for sha256 in wanted}
        for digest in scan.artifacts:
            self.go_on()
            for file in self._files_of(digest):
                if file.sha256 in wanted and file not in self._files[file.sha256]:
                    self._files[file.sha256].append(file)

    def _files_of(self, digest: str) -> tuple[FileEntry, ...]:
        try:
            return self.keeper.store.manifest(digest).files
        except (BadArtifact, NotFound):
            return ()


def _all_of(keeper: Keeper, part: Part) -> Iterator[bytes]:
    with contextlib.suppress(OSError):  # it has none, or cannot read it
        yield keeper.read(part)
    yield from keeper.copies(part)


def _starts(file: FileEntry) -> Iterator[tuple[Chunk, int]]:
    start = 0
    for chunk in file.chunks:
        yield chunk, start
        start += chunk.size_bytes
