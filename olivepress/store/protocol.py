"""What every store of artifacts can do; `directory.py` and `bucket.py` are the two kinds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from olivepress.store.manifest import Chunk, Manifest

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all, from the thread that called the store."""


@dataclass(frozen=True)
class StoreStats:
    """What the store holds: `logical_bytes` of artifacts, in `stored_bytes` of chunks."""

    artifacts: int
    logical_bytes: int
    stored_bytes: int


@dataclass(frozen=True)
class Share:
    """What a group of artifacts takes: `logical_bytes` of files, in `stored_bytes` of distinct chunks."""

    artifacts: int
    logical_bytes: int
    stored_bytes: int


class Store(Protocol):
    """Immutable artifacts, named by the digest of their manifest, kept as chunks that they share.

    Digests are hex SHA-256. All methods may be called from many threads, processes and machines at once. Writing raises
    DiskFull when there is no room; a store on another machine raises ServiceUnavailable while it does not answer.
    """

    @property
    def name(self) -> str:
        """Where it is, for messages."""

    def put_directory(self, source: Path, on_progress: Progress | None = None) -> Manifest:
        """Stores the files below `source` as an artifact; chunks that are there already are not written again.

        Empty directories, times and modes are not part of an artifact.

        Raises: BadArtifact (no files, a link or device, a name that is not portable, a file that changes), DiskFull.
        """

    def put_chunk(self, content: bytes) -> Chunk:
        """Stores a piece that an artifact will consist of: see `put_manifest`. Raises: DiskFull."""

    def put_manifest(self, manifest: Manifest) -> Manifest:
        """Stores an artifact whose chunks were put one by one. Raises: BadArtifact (one is not there), DiskFull."""

    def extend(self, manifest: Manifest, files: dict[str, bytes]) -> Manifest:
        """Stores the artifact `manifest` with these small files (path → content) added or put in place of its own.

        Nothing of the other files is copied. Raises: BadArtifact (a bad path, or a chunk of `manifest` is
        missing), DiskFull.
        """

    def manifest(self, digest: str) -> Manifest:
        """The manifest of an artifact, verified. Raises: NotFound, BadArtifact."""

    def has(self, digest: str) -> bool:
        """Whether the artifact is there with all its chunks in full length (their content is verified on reading).

        A yes can be relied on: asking renews the artifact, so the collector leaves it for its grace period.
        """

    def missing(self, chunks: frozenset[Chunk]) -> frozenset[Chunk]:
        """Those that the store does not have; the others are renewed."""

    def materialise(self, digest: str, target: Path) -> None:
        """Lays out the artifact as the directory `target`, which appears whole or not at all.

        `target` must not exist, its parent must. Every chunk is verified. The files are not brought to the disk: a
        workspace does not outlive a power cut.

        Raises: NotFound, BadArtifact (a missing or damaged chunk), DiskFull, FileExistsError.
        """

    def open_file(self, digest: str, path: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Streams a file of an artifact, or its bytes from `start` up to `end`, chunk by chunk.

        Each chunk is verified before any of it is handed out. Raises NotFound and a damaged manifest's BadArtifact at
        once; BadArtifact while it streams, for a chunk.
        """

    def free_bytes(self) -> int | None:
        """Room for new content; None where there is no bound. Raises: OSError or ServiceUnavailable, out of reach."""

    def sweep_temporary(self, older_than_s: float) -> int:
        """Removes what dead writers left behind and answers how many files. A living writer needs seconds for one."""

    def stats(self) -> StoreStats:
        """Counts and sizes; reads every manifest. A damaged manifest is logged and counts as no artifact."""

    def shares(self, group_of: Callable[[str], str]) -> dict[str, Share]:
        """The same by group: `group_of` gives the group of an artifact's digest."""
