"""Where the files of a directory store lie, and the clock that dates them."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from olivepress.errors import BadArtifact
from olivepress.store.manifest import CHUNK_LIMIT_BYTES, MANIFEST_LIMIT_BYTES, is_sha256

_MANIFEST_SUFFIX = ".json"
# What a system says of a broken sector, of a link that leads to itself, of a directory where a file belongs and of a
# file where a directory belongs, of closed permissions: the part is of no use, and another attempt changes nothing.
UNREADABLE = frozenset(
    {errno.EIO, getattr(errno, "EUCLEAN", errno.EIO), errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EACCES}
)


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
            try:
                directory.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise BadArtifact(
                    f"{directory} is no directory, as a store has it; move aside what is there, and try again"
                ) from error

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
            return read_part(path)
        for batch in self.trash.iterdir():
            with contextlib.suppress(OSError):  # what is damaged there, or nobody's, is no copy
                return read_part(batch / path.name)
        return read_part(path)  # it may have been put back meanwhile

    def _two_levels(self, directory: Path) -> Iterator[StoredFile]:
        for shelf in sorted(directory.iterdir()):
            # On another shelf nobody looks for it.
            yield from (file for file in stored_files(shelf) if file.sha256[:2] == shelf.name)


def stored_files(directory: Path) -> Iterator[StoredFile]:
    """The chunks and manifests right in a directory; what has another name is nobody's to touch."""
    try:
        entries = os.scandir(directory)
    except OSError as error:
        if error.errno not in UNREADABLE | {errno.ENOENT}:
            raise
        return
    with entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                file = StoredFile(Path(entry.path), status.st_size, status.st_mtime_ns)
                if is_sha256(file.sha256):
                    yield file


def read_part(path: Path) -> bytes:
    """The content of a chunk or a manifest, or of what lies in its place: never more than a little above its limit.

    Raises: see `open_file`.
    """
    limit_bytes = MANIFEST_LIMIT_BYTES if path.suffix == _MANIFEST_SUFFIX else CHUNK_LIMIT_BYTES
    with open_file(path) as stream:
        # Not the limit: that much memory would be taken before the first byte is read.
        return stream.read(min(os.fstat(stream.fileno()).st_size, limit_bytes) + 1)


def open_file(path: Path) -> BufferedReader:
    """Opens a file for reading.

    Raises: FileNotFoundError, OSError (also where something else than a file has the name: a pipe has no end).
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EIO, "it is no file", str(path))
    return path.open("rb")
