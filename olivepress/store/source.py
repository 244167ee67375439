"""The files of a directory that is put into a store, read piece by piece."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from olivepress.errors import BadArtifact
from olivepress.store.cutting import piece_sizes
from olivepress.store.manifest import Chunk, FileEntry, check_paths


@dataclass
class SourceFile:
    """A file that is being put, with what is known of it so far."""

    location: Path
    path: str
    size_bytes: int
    whole: Any = field(default_factory=hashlib.sha256)
    chunks: list[Chunk] = field(default_factory=list)

    def entry(self) -> FileEntry:
        """What the manifest says of it, when all of its chunks are known."""
        sha256 = self.chunks[0].sha256 if len(self.chunks) == 1 else self.whole.hexdigest()
        return FileEntry(self.path, self.size_bytes, sha256, tuple(self.chunks))


@dataclass(frozen=True)
class Piece:
    """A piece of a file that was read and is not stored yet."""

    file: SourceFile
    content: bytes


def source_files(source: Path) -> list[SourceFile]:
    """The files below a directory.

    Raises: BadArtifact (there are none, a link or device, a name that is not portable).
    """
    files = [
        SourceFile(location, location.relative_to(source).as_posix(), location.stat().st_size)
        for location in _walk(source)
    ]
    if not files:
        raise BadArtifact(f"The directory {source} has no files. Look into the log of the step that left it empty.")
    check_paths([file.path for file in files])  # before the work, not after it
    return files


def read_pieces(file: SourceFile) -> Iterator[Piece]:
    """Reads the file once; hashes it as a whole on the way, for its pieces are hashed by other threads.

    Raises: BadArtifact (it changes meanwhile).
    """
    sizes = piece_sizes(file.location, file.size_bytes)
    with file.location.open("rb") as stream:
        for size in sizes:
            content = stream.read(size)
            if len(sizes) > 1:
                file.whole.update(content)
            if len(content) == size:
                yield Piece(file, content)
        if stream.tell() != file.size_bytes or stream.read(1):
            raise changed(file)


def changed(file: SourceFile) -> BadArtifact:
    """The error for a file that is written to while it is put."""
    return BadArtifact(f"{file.location} changed while it was put into the store. Put it when it is finished.")


def _walk(directory: Path) -> Iterator[Path]:
    for entry in directory.iterdir():
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise BadArtifact(f"{entry} is a link or a device. An artifact has only files: put a copy in its place.")
        if entry.is_dir():
            yield from _walk(entry)
        else:
            yield entry
