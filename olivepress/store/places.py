"""Where the files of a directory store lie, and the clock that dates them."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from olivepress.store.manifest import is_sha256

_MANIFEST_SUFFIX = ".json"


@dataclass(frozen=True)
class StoredFile:
    """A chunk or a manifest as it was seen: it may be gone by now."""

    path: Path
    """In a bucket: its key."""
    size_bytes: int
    renewed_ns: int
    """Its modification time, in nanoseconds by the file system's clock: when somebody last wrote or relied on it."""

    @property
    def sha256(self) -> str:
        """Of its content: a chunk's name, or an artifact's digest."""
        return self.path.name.removesuffix(_MANIFEST_SUFFIX)

    @property
    def is_manifest(self) -> bool:
        """Whether it lists an artifact's files; a chunk does not."""
        return self.path.suffix == _MANIFEST_SUFFIX


@dataclass(frozen=True)
class Places:
    """The paths of a store; `directory.py` draws them."""

    root: Path

    @property
    def tmp(self) -> Path:
        """Files that a writer has begun."""
        return self.root / "tmp"

    @property
    def trash(self) -> Path:
        """Files that the collector took out; see `collecting.py`."""
        return self.root / "trash"

    @property
    def quarantine(self) -> Path:
        """Damaged files that were taken out of use; see `keeping.py`."""
        return self.root / "quarantine"

    def make(self) -> None:
        """Makes the directories that are missing."""
        for directory in (self.root / "chunks", self.root / "manifests", self.tmp, self.trash, self.quarantine):
            directory.mkdir(parents=True, exist_ok=True)

    def chunk(self, sha256: str) -> Path:
        """Where a chunk belongs."""
        return self.root / "chunks" / sha256[:2] / sha256

    def manifest(self, digest: str) -> Path:
        """Where an artifact's manifest belongs."""
        return self.root / "manifests" / digest[:2] / f"{digest}{_MANIFEST_SUFFIX}"

    def home(self, file: StoredFile) -> Path:
        """Where a file that may lie in the trash belongs."""
        return self.manifest(file.sha256) if file.is_manifest else self.chunk(file.sha256)

    def manifests(self) -> Iterator[StoredFile]:
        """The manifests that can be seen."""
        return self._two_levels(self.root / "manifests")

    def chunks(self) -> Iterator[StoredFile]:
        """The chunks that can be seen."""
        return self._two_levels(self.root / "chunks")

    def now_ns(self) -> int:
        """Now, by the clock that also dates the files: the store may be shared by machines whose clocks differ."""
        os.utime(self.tmp)
        return self.tmp.stat().st_mtime_ns

    def read(self, path: Path) -> bytes:
        """The content of a chunk or a manifest; one that waits in the trash is read there.

        Raises: FileNotFoundError, when it is in neither place.
        """
        with contextlib.suppress(FileNotFoundError):
            return path.read_bytes()
        for batch in self.trash.iterdir():
            with contextlib.suppress(FileNotFoundError):
                return (batch / path.name).read_bytes()
        return path.read_bytes()  # it may have been put back meanwhile

    def _two_levels(self, directory: Path) -> Iterator[StoredFile]:
        for shelf in sorted(directory.iterdir()):
            yield from stored_files(shelf)


def stored_files(directory: Path) -> Iterator[StoredFile]:
    """The chunks and manifests right in a directory; what has another name is nobody's to touch."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                file = StoredFile(Path(entry.path), status.st_size, status.st_mtime_ns)
                if is_sha256(file.sha256):
                    yield file
