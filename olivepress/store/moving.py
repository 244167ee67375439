"""Copies all artifacts of a store into another one, of the same kind or not; the source stays as it is.

Chunks first, then the manifest that needs them, so what can be seen in the target is whole at any time. A chunk is
verified when it is read from the source. What the target has in full length is not copied again: a run that was killed
is gone on with by the next, and a second run copies only what came into the source meanwhile.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from olivepress.errors import BadArtifact, DiskFull, NotFound
from olivepress.store.artifacts import in_order
from olivepress.store.checking import Checker, Finding
from olivepress.store.collecting import NONE, Amount
from olivepress.store.healing import Healer, Outcome
from olivepress.store.keeping import Keeper
from olivepress.store.manifest import Chunk, Manifest
from olivepress.store.protocol import Progress


@dataclass
class Moved:
    """What a run did."""

    artifacts: int = 0
    """In the target now."""
    new_artifacts: int = 0
    copied: Amount = NONE
    """Chunks."""
    already_there: Amount = NONE
    failed: dict[str, str] = field(default_factory=dict)
    """Digests of artifacts that cannot be read in full in the source, with the reason."""
    verified_bytes: int | None = None
    """Read back from the target; None: it was not asked for."""
    damaged: list[Finding] = field(default_factory=list)
    """What was damaged in the target when it was read back, and is not right in the source either."""
    seconds: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether the target has all that the source has."""
        return not self.failed and not self.damaged


@dataclass
class Mover:
    """Copies one store into another.

    Args:
        on_progress: called with the bytes of chunks done and in all.
        go_on: called between chunks; what it raises ends the run, and the next goes on.
    """

    source: Keeper
    target: Keeper
    on_progress: Progress | None = None
    go_on: Callable[[], None] = lambda: None

    def run(self, *, verify: bool = False) -> Moved:
        """Copy what the target lacks.

        Args:
            verify: read everything in the target back in the end, and put anew what is damaged there.

        Raises: DiskFull, ServiceUnavailable.
        """
        began_at, moved = time.monotonic(), Moved()
        self._check_room()
        self._copy_all(moved)
        if verify:
            self._verify(moved)
        moved.seconds = time.monotonic() - began_at
        return moved

    def _check_room(self) -> None:
        there = {held.part.sha256 for held in self.target.chunks()}
        needed = sum(held.size_bytes for held in self.source.chunks() if held.part.sha256 not in there)
        free = self.target.store.free_bytes()
        if free is not None and needed > free:
            raise DiskFull(
                f"{self.target.store.name} needs {needed / 1e9:.2f} GB more, and {free / 1e9:.2f} GB are free; "
                "free some space there and try again"
            )

    def _copy_all(self, moved: Moved) -> None:
        total_bytes = sum(held.size_bytes for held in self.source.chunks())
        before = {held.part.sha256 for held in self.target.manifests()}
        seen: set[Chunk] = set()
        done_bytes = 0
        for digest in sorted(held.part.sha256 for held in self.source.manifests()):
            self.go_on()
            try:
                manifest = self.source.store.manifest(digest)
                for size_bytes in self._copy(manifest, manifest.chunks() - seen, moved):
                    done_bytes += size_bytes
                    if self.on_progress:
                        self.on_progress(min(done_bytes, total_bytes), total_bytes)
                self.target.store.put_manifest(manifest)
            except NotFound:  # collected just now
                continue
            except BadArtifact as error:
                moved.failed[digest] = str(error)
                continue
            seen |= manifest.chunks()
            moved.artifacts += 1
            moved.new_artifacts += digest not in before

    def _copy(self, manifest: Manifest, chunks: frozenset[Chunk], moved: Moved) -> Iterator[int]:
        """Copies these chunks of an artifact; gives the size of each that is in the target now."""
        absent = self.target.store.missing(chunks)
        for chunk in chunks - absent:
            moved.already_there += Amount(1, chunk.size_bytes)
            yield chunk.size_bytes
        paths = {chunk: file.path for file in manifest.files for chunk in file.chunks}

        def copy(chunk: Chunk) -> Chunk:
            return self.target.store.put_chunk(self.source.store.read_chunk(chunk, paths[chunk]))

        for chunk in in_order(copy, sorted(absent, key=lambda chunk: chunk.sha256), self.target.store.threads):
            self.go_on()
            moved.copied += Amount(1, chunk.size_bytes)
            yield chunk.size_bytes

    def _verify(self, moved: Moved) -> None:
        scan = Checker(self.target, on_progress=self.on_progress, go_on=self.go_on).run(anew=True)
        moved.verified_bytes = scan.read_bytes
        done = Healer(self.target, [self.source], go_on=self.go_on).heal(scan)
        moved.damaged = [each.finding for each in done if each.outcome not in (Outcome.HEALED, Outcome.RIGHT)]
