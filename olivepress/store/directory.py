"""The store as a directory, safe with many writers on many machines and with a kill at any point.

    chunks/ab/abcdef…           a chunk, named by its SHA-256, read-only
    manifests/ab/abcdef….json   an artifact's manifest, named by its SHA-256
    tmp/host-pid-random         a file that a writer has begun; what a dead writer leaves lies only here
    trash/cutoff-random/…       what nothing refers to any more, until it is removed (collecting.py)

A file is written under a name in tmp/, brought to the disk, and renamed. A manifest is written after all of its
chunks have reached the disk, so an artifact that can be seen is complete.

Whoever puts an artifact or is told that the store has it relies on files that may be old. Both renew them: from then
on the collector leaves them alone for its grace period.
"""

import errno
import hashlib
import logging
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from olivepress.errors import BadArtifact, NotFound
from olivepress.store.cutting import cut, piece_sizes
from olivepress.store.durable import full_disk_is_named, renew, sweep, sync_directory, write_whole
from olivepress.store.manifest import Chunk, FileEntry, Manifest, check_paths, is_sha256
from olivepress.store.places import Places

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all, from the thread that called the store."""

# More than the cores of a small machine: some wait for the disk while others hash.
_THREADS = 4
# Pieces read and not yet stored; each takes up to 16 MiB of memory.
_PENDING = _THREADS + 2


@dataclass(frozen=True)
class StoreStats:
    """What the store holds: `logical_bytes` of artifacts, in `stored_bytes` of chunks on the disk."""

    artifacts: int
    logical_bytes: int
    stored_bytes: int


class DirectoryStore:
    """Artifacts in the directory `root`, which is made when it is missing.

    Writing raises DiskFull when there is no room. An artifact never changes; digests are hex SHA-256.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.places = Places(root)
        self.places.make()

    def put_directory(self, source: Path, on_progress: Progress | None = None) -> Manifest:
        """Stores the files below `source` as an artifact; chunks that are there already are not written again.

        Empty directories, times and modes are not part of an artifact.

        Raises: BadArtifact (no files, a link or device, a name that is not portable, a file that changes), DiskFull.
        """
        files = _source_files(source)
        total_bytes = sum(file.size_bytes for file in files)
        done_bytes = 0
        with full_disk_is_named(self.root, total_bytes):
            pieces = (piece for file in files for piece in _read_pieces(file))
            for file, chunk in _in_order(self._put_piece, pieces):
                file.chunks.append(chunk)
                done_bytes += chunk.size_bytes
                if on_progress:
                    on_progress(done_bytes, total_bytes)
            manifest = Manifest.of(file.entry() for file in files)
            # A long put: what was there at its begin may have been collected since, and the source is still at hand.
            for chunk in self._renew_all(manifest):
                write_whole(self.places.chunk(chunk.sha256), _read_again(chunk, files), self.places.tmp)
            return self._put_manifest(manifest)

    def extend(self, manifest: Manifest, files: dict[str, bytes]) -> Manifest:
        """Stores the artifact `manifest` with these small files (path → content) added or put in place of its own.

        Nothing of the other files is copied. Raises: BadArtifact (a bad path, or a chunk of `manifest` is
        missing), DiskFull.
        """
        entries = {file.path: file for file in manifest.files}
        with full_disk_is_named(self.root, sum(len(content) for content in files.values())):
            for path, content in files.items():
                chunks = tuple(self._put_chunk(piece) for piece in _pieces_of(content))
                entries[path] = FileEntry(path, len(content), _sha256(content), chunks)
            extended = Manifest.of(entries.values())
            for missing in self._renew_all(extended):
                raise BadArtifact(
                    f"The store {self.root} lacks chunk {missing.sha256}, of which the new artifact consists. "
                    "Submit the checkpoint again: then it is written anew."
                )
            return self._put_manifest(extended)

    def manifest(self, digest: str) -> Manifest:
        """The manifest of an artifact, verified. Raises: NotFound, BadArtifact."""
        if not is_sha256(digest):  # it may come from a user, and it becomes a path
            raise NotFound("An artifact's digest is 64 lower-case hexadecimal digits. Ask for one of that form.")
        path = self.places.manifest(digest)
        try:
            content = self.places.read(path)
        except FileNotFoundError:
            raise NotFound(
                f"The store {self.root} has no artifact {digest}. Submit its checkpoint again to make it."
            ) from None
        if _sha256(content) != digest:
            raise BadArtifact(
                f"The manifest of artifact {digest} is damaged: {path}. "
                "Delete this file and submit the checkpoint again: then it is written anew."
            )
        return Manifest.parse(content)

    def has(self, digest: str) -> bool:
        """Whether the artifact is there with all its chunks in full length (their content is verified on reading).

        A yes can be relied on: asking renews the artifact, so the collector leaves it for its grace period.
        """
        try:
            if not is_sha256(digest) or renew(self.places.manifest(digest), self.places.tmp) is None:
                return False
            return not any(True for _ in self._renew_all(self.manifest(digest)))
        except (NotFound, BadArtifact):
            return False

    def materialise(self, digest: str, target: Path) -> None:
        """Lays out the artifact as the directory `target`, which appears whole or not at all.

        `target` must not exist, its parent must. Every chunk is verified. The files are not brought to the disk: a
        workspace does not outlive a power cut.

        Raises: NotFound, BadArtifact (a missing or damaged chunk), DiskFull, FileExistsError.
        """
        manifest = self.manifest(digest)
        if target.exists():
            raise FileExistsError(errno.EEXIST, "an artifact is laid out in a new directory", str(target))
        partial = target.absolute().with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
        try:
            with full_disk_is_named(target, manifest.size_bytes):
                places = _lay_out(manifest, partial)
                for _ in _in_order(self._copy_chunk, places):
                    pass
                partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def open_file(self, digest: str, path: str) -> Iterator[bytes]:
        """Streams a file of an artifact chunk by chunk (up to 16 MiB); each is verified before it is handed out.

        Raises NotFound and a damaged manifest's BadArtifact at once; BadArtifact while it streams, for a chunk.
        """
        file = self.manifest(digest).file(path)
        return (self._read_chunk(chunk, file.path) for chunk in file.chunks)

    def sweep_temporary(self, older_than_s: float) -> int:
        """Removes what dead writers left in tmp/ and answers how many files. A living writer needs seconds for one.

        Age is told by the file system's own clock: the store may be shared by machines whose clocks differ.
        """
        return sweep(self.places.tmp, older_than_s)

    def stats(self) -> StoreStats:
        """Counts and sizes; reads every manifest. A damaged manifest is logged and counts as no artifact."""
        artifacts = logical_bytes = 0
        for file in self.places.manifests():
            try:
                logical_bytes += self.manifest(file.sha256).size_bytes
                artifacts += 1
            except (NotFound, BadArtifact) as error:
                log.warning("%s", error)
        stored_bytes = sum(file.size_bytes for file in self.places.chunks())
        return StoreStats(artifacts, logical_bytes, stored_bytes)

    def _put_piece(self, piece: "_Piece") -> tuple["_SourceFile", Chunk]:
        return piece.file, self._put_chunk(piece.content)

    def _put_chunk(self, content: bytes) -> Chunk:
        chunk = Chunk(_sha256(content), len(content))
        if not self._renew_chunk(chunk):
            write_whole(self.places.chunk(chunk.sha256), content, self.places.tmp)
        return chunk

    def _renew_chunk(self, chunk: Chunk) -> bool:
        # The length tells a chunk that the file system cut off; it is then written anew.
        return renew(self.places.chunk(chunk.sha256), self.places.tmp) == chunk.size_bytes

    def _renew_all(self, manifest: Manifest) -> Iterator[Chunk]:
        """Renews the chunks of an artifact; answers those that are not there."""
        return (chunk for chunk in manifest.chunks() if not self._renew_chunk(chunk))

    def _put_manifest(self, manifest: Manifest) -> Manifest:
        # Also for chunks that were there: their writer may not have come to this yet.
        shelves = {self.places.chunk(chunk.sha256).parent for chunk in manifest.chunks()}
        for directory in shelves:
            sync_directory(directory)
        sync_directory(self.root / "chunks")
        path, content = self.places.manifest(manifest.digest), manifest.to_json()
        if not self._renew_manifest(path, content):
            write_whole(path, content, self.places.tmp)
        sync_directory(path.parent)
        sync_directory(self.root / "manifests")
        return manifest

    def _renew_manifest(self, path: Path, content: bytes) -> bool:
        try:
            return renew(path, self.places.tmp) is not None and path.read_bytes() == content
        except FileNotFoundError:  # taken out between the two; a copy in its place does no harm
            return False

    def _read_chunk(self, chunk: Chunk, file_path: str) -> bytes:
        path = self.places.chunk(chunk.sha256)
        try:
            content = self.places.read(path)
        except FileNotFoundError:
            raise BadArtifact(
                f"File '{file_path}' cannot be read from the store: its chunk is missing, {path}. "
                "Restore it from a backup, or submit the checkpoint again: then it is written anew."
            ) from None
        if _sha256(content) != chunk.sha256:
            raise BadArtifact(
                f"File '{file_path}' cannot be read from the store: its chunk is damaged, {path}. "
                "Delete this chunk and submit the checkpoint again: then it is written anew."
            )
        return content

    def _copy_chunk(self, place: "_Place") -> None:
        content = self._read_chunk(place.chunk, place.file_path)
        with place.target.open("r+b") as file:
            file.seek(place.offset)
            file.write(content)


@dataclass
class _SourceFile:
    """A file that is being put, with what is known of it so far."""

    location: Path
    path: str
    size_bytes: int
    whole: Any = field(default_factory=hashlib.sha256)
    chunks: list[Chunk] = field(default_factory=list)

    def entry(self) -> FileEntry:
        sha256 = self.chunks[0].sha256 if len(self.chunks) == 1 else self.whole.hexdigest()
        return FileEntry(self.path, self.size_bytes, sha256, tuple(self.chunks))


@dataclass(frozen=True)
class _Piece:
    file: _SourceFile
    content: bytes


@dataclass(frozen=True)
class _Place:
    """Where a chunk goes when an artifact is laid out."""

    chunk: Chunk
    file_path: str
    target: Path
    offset: int


def _source_files(source: Path) -> list[_SourceFile]:
    files = [
        _SourceFile(location, location.relative_to(source).as_posix(), location.stat().st_size)
        for location in _walk(source)
    ]
    if not files:
        raise BadArtifact(f"The directory {source} has no files. Look into the log of the step that left it empty.")
    check_paths([file.path for file in files])  # before the work, not after it
    return files


def _walk(directory: Path) -> Iterator[Path]:
    for entry in directory.iterdir():
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise BadArtifact(f"{entry} is a link or a device. An artifact has only files: put a copy in its place.")
        if entry.is_dir():
            yield from _walk(entry)
        else:
            yield entry


def _read_pieces(file: _SourceFile) -> Iterator[_Piece]:
    """Reads the file once; hashes it as a whole on the way, for its pieces are hashed by other threads."""
    sizes = piece_sizes(file.location, file.size_bytes)
    with file.location.open("rb") as stream:
        for size in sizes:
            content = stream.read(size)
            if len(sizes) > 1:
                file.whole.update(content)
            if len(content) == size:
                yield _Piece(file, content)
        if stream.tell() != file.size_bytes or stream.read(1):
            raise BadArtifact(f"{file.location} changed while it was put into the store. Put it when it is finished.")


def _read_again(chunk: Chunk, files: list[_SourceFile]) -> bytes:
    """The content of a chunk from the source that is being put. Raises: BadArtifact (the source has changed)."""
    file = next(file for file in files if chunk in file.chunks)
    before = file.chunks[: file.chunks.index(chunk)]
    with file.location.open("rb") as stream:
        stream.seek(sum(piece.size_bytes for piece in before))
        content = stream.read(chunk.size_bytes)
    if _sha256(content) != chunk.sha256:
        raise BadArtifact(f"{file.location} changed while it was put into the store. Put it when it is finished.")
    return content


def _pieces_of(content: bytes) -> Iterator[bytes]:
    start = 0
    for size in cut(len(content), []):
        yield content[start : start + size]
        start += size


def _lay_out(manifest: Manifest, directory: Path) -> list[_Place]:
    """Makes the files of an artifact in full length, still without content; answers where each chunk goes."""
    directory.mkdir()
    places = []
    for file in manifest.files:
        target = directory / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as stream:
            stream.truncate(file.size_bytes)
        offset = 0
        for chunk in file.chunks:
            places.append(_Place(chunk, file.path, target, offset))
            offset += chunk.size_bytes
    return places


def _in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results of `work` for each item, in order, by a few threads. Items are taken as they are needed, few ahead."""
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="store") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= _PENDING:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
