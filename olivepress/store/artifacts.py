"""What both kinds of store share: how directories become artifacts and artifacts directories, piece by piece."""

import errno
import hashlib
import logging
import secrets
import shutil
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from olivepress.errors import BadArtifact, NotFound
from olivepress.store.cutting import cut
from olivepress.store.durable import full_disk_is_named
from olivepress.store.manifest import Chunk, FileEntry, Manifest, is_sha256
from olivepress.store.places import UNREADABLE
from olivepress.store.protocol import Progress, Share, StoreStats
from olivepress.store.source import Piece, SourceFile, changed, read_pieces, source_files

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# What both kinds say of damage: the step that made the artifact makes it again.
_ANEW = "submit the checkpoint again: then it is written anew."
_CHECK = "Run `olivepress store check --repair`: it heals this, or says what is lost."


class ArtifactStore(ABC):
    """The algorithms over a few operations on single chunks and manifests, which each kind of store has in its way.

    Whoever puts an artifact or is told that the store has it relies on content that may be old. Both renew it: from
    then on the collector leaves it alone for its grace period.
    """

    threads = 4
    """At work at a time. More than the cores of a small machine: some wait for the disk while others hash. Each, and
    two more pieces that are read ahead, takes up to 16 MiB of memory."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Where it is, for messages."""

    @abstractmethod
    def has(self, digest: str) -> bool:
        """See `Store.has`."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """See `Store.free_bytes`."""

    @abstractmethod
    def sweep_temporary(self, older_than_s: float) -> int:
        """See `Store.sweep_temporary`."""

    @abstractmethod
    def place_of_chunk(self, sha256: str) -> str:
        """Where a chunk lies, for messages."""

    @abstractmethod
    def place_of_manifest(self, digest: str) -> str:
        """Where a manifest lies, for messages."""

    @abstractmethod
    def is_quarantined(self, sha256: str) -> bool:
        """Whether a check found this chunk damaged and took it out of use."""

    @abstractmethod
    def chunk_sizes(self) -> Iterator[int]:
        """The sizes in bytes of all chunks that it holds."""

    @abstractmethod
    def manifest_digests(self) -> Iterator[str]:
        """The digests of all artifacts that can be seen."""

    @abstractmethod
    def _has_chunk(self, chunk: Chunk) -> bool:
        """Whether it is there in full length; only a hint: it may be removed at any time unless it was renewed."""

    @abstractmethod
    def _write_chunk(self, chunk: Chunk, content: bytes) -> None: ...

    @abstractmethod
    def _load_chunk(self, sha256: str) -> bytes:
        """Raises: FileNotFoundError."""

    @abstractmethod
    def _load_manifest(self, digest: str) -> bytes:
        """Raises: FileNotFoundError."""

    @abstractmethod
    def _renew_all(self, digest: str | None, chunks: frozenset[Chunk]) -> Iterator[Chunk]:
        """Renews an artifact's manifest, if it is there, and these chunks; answers the chunks that are not there."""

    @abstractmethod
    def _put_manifest(self, manifest: Manifest) -> Manifest:
        """Stores the manifest of chunks that are all there and renewed."""

    @abstractmethod
    def room_is_named(self, needed_bytes: int) -> AbstractContextManager[None]:
        """Turns what writing raises when there is no room into DiskFull."""

    def put_directory(self, source: Path, on_progress: Progress | None = None) -> Manifest:
        """See `Store.put_directory`."""
        files = source_files(source)
        total_bytes = sum(file.size_bytes for file in files)
        done_bytes = 0
        with self.room_is_named(total_bytes):
            pieces = (piece for file in files for piece in read_pieces(file))
            for file, chunk in in_order(self._put_piece, pieces, self.threads):
                file.chunks.append(chunk)
                done_bytes += chunk.size_bytes
                if on_progress:
                    on_progress(done_bytes, total_bytes)
            manifest = Manifest.of(file.entry() for file in files)
            # A long put: what was there at its begin may have been collected since, and the source is still at hand.
            for chunk in self._renew_all(manifest.digest, manifest.chunks()):
                self._write_chunk(chunk, _read_again(chunk, files))
            return self._put_manifest(manifest)

    def put_chunk(self, content: bytes) -> Chunk:
        """See `Store.put_chunk`."""
        chunk = Chunk(sha256_of(content), len(content))
        with self.room_is_named(len(content)):
            if not self._has_chunk(chunk):
                self._write_chunk(chunk, content)
        return chunk

    def put_manifest(self, manifest: Manifest) -> Manifest:
        """See `Store.put_manifest`."""
        with self.room_is_named(len(manifest.to_json())):
            for absent in self._renew_all(manifest.digest, manifest.chunks()):
                raise BadArtifact(
                    f"The store {self.name} lacks chunk {absent.sha256}, of which the new artifact consists. "
                    f"If it was there before, {_ANEW}"
                )
            return self._put_manifest(manifest)

    def extend(self, manifest: Manifest, files: dict[str, bytes]) -> Manifest:
        """See `Store.extend`."""
        entries = {file.path: file for file in manifest.files}
        for path, content in files.items():
            chunks = tuple(self.put_chunk(piece) for piece in _pieces_of(content))
            entries[path] = FileEntry(path, len(content), sha256_of(content), chunks)
        return self.put_manifest(Manifest.of(entries.values()))

    def manifest(self, digest: str) -> Manifest:
        """See `Store.manifest`."""
        if not is_sha256(digest):  # it may come from a user, and it becomes a path
            raise NotFound("An artifact's digest is 64 lower-case hexadecimal digits. Ask for one of that form.")
        try:
            content = self._load_manifest(digest)
        except FileNotFoundError:
            raise NotFound(
                f"The store {self.name} has no artifact {digest}. Submit its checkpoint again to make it."
            ) from None
        except OSError as error:
            raise _unreadable(f"The manifest of artifact {digest}", self.place_of_manifest(digest), error) from error
        if sha256_of(content) != digest:
            raise BadArtifact(
                f"The manifest of artifact {digest} is damaged: {self.place_of_manifest(digest)}. {_CHECK}"
            )
        return Manifest.parse(content)

    def missing(self, chunks: frozenset[Chunk]) -> frozenset[Chunk]:
        """See `Store.missing`."""
        return frozenset(self._renew_all(None, chunks))

    def materialise(self, digest: str, target: Path) -> None:
        """See `Store.materialise`."""
        manifest = self.manifest(digest)
        if target.exists():
            raise FileExistsError(errno.EEXIST, "an artifact is laid out in a new directory", str(target))
        partial = target.absolute().with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
        try:
            with full_disk_is_named(target, manifest.size_bytes):
                places = _lay_out(manifest, partial)
                for _ in in_order(self._copy_chunk, places, self.threads):
                    pass
                partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def open_file(self, digest: str, path: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `Store.open_file`."""
        file = self.manifest(digest).file(path)
        return self.read_range(file, start, file.size_bytes if end is None else min(end, file.size_bytes))

    def stats(self) -> StoreStats:
        """See `Store.stats`."""
        sizes = [manifest.size_bytes for manifest in self._manifests()]
        return StoreStats(len(sizes), sum(sizes), sum(self.chunk_sizes()))

    def shares(self, group_of: Callable[[str], str]) -> dict[str, Share]:
        """See `Store.shares`."""
        counts: dict[str, tuple[int, int]] = {}
        chunks: dict[str, set[Chunk]] = {}
        for manifest in self._manifests():
            group = group_of(manifest.digest)
            artifacts, logical_bytes = counts.get(group, (0, 0))
            counts[group] = (artifacts + 1, logical_bytes + manifest.size_bytes)
            chunks.setdefault(group, set()).update(manifest.chunks())
        return {
            group: Share(artifacts, logical_bytes, sum(chunk.size_bytes for chunk in chunks[group]))
            for group, (artifacts, logical_bytes) in sorted(counts.items())
        }

    def _manifests(self) -> Iterator[Manifest]:
        for digest in self.manifest_digests():
            try:
                yield self.manifest(digest)
            except (NotFound, BadArtifact) as error:
                log.warning("%s", error)

    def _put_piece(self, piece: Piece) -> tuple[SourceFile, Chunk]:
        chunk = Chunk(sha256_of(piece.content), len(piece.content))
        if not self._has_chunk(chunk):
            self._write_chunk(chunk, piece.content)
        return piece.file, chunk

    def read_range(self, file: FileEntry, start: int, end: int) -> Iterator[bytes]:
        """The bytes of a file from `start` up to `end`, verified chunk by chunk. Raises: BadArtifact."""
        offset = 0
        for chunk in file.chunks:
            if offset + chunk.size_bytes > start and offset < end:
                content = self.read_chunk(chunk, file.path)
                yield content[max(0, start - offset) : end - offset]
            offset += chunk.size_bytes

    def read_chunk(self, chunk: Chunk, file_path: str) -> bytes:
        """A chunk of the file of this path, verified. Raises: BadArtifact (it is missing or damaged)."""
        place = self.place_of_chunk(chunk.sha256)
        try:
            content = self._load_chunk(chunk.sha256)
        except FileNotFoundError:
            why = " (it was found damaged and lies in quarantine)" if self.is_quarantined(chunk.sha256) else ""
            raise BadArtifact(
                f"File '{file_path}' cannot be read from the store: its chunk is missing{why}, {place}. {_CHECK}"
            ) from None
        except OSError as error:
            raise _unreadable(f"A chunk of file '{file_path}'", place, error) from error
        if sha256_of(content) != chunk.sha256:
            raise BadArtifact(
                f"File '{file_path}' cannot be read from the store: its chunk is damaged, {place}. {_CHECK}"
            )
        return content

    def _share_chunk(self, place: "Place") -> bool:
        """Whether it came to its place without a copy; it was read and verified just now."""
        return False

    def _copy_chunk(self, place: "Place") -> None:
        content = self.read_chunk(place.chunk, place.file.path)
        if self._share_chunk(place):
            return
        with place.target.open("r+b") as file:
            file.seek(place.offset)
            file.write(content)


@dataclass(frozen=True)
class Place:
    """Where a chunk goes when an artifact is laid out."""

    chunk: Chunk
    file: FileEntry
    target: Path
    offset: int


def in_order(work: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R, None, None]:
    """Results of `work` for each item, in order, by a few threads. Items are taken as they are needed, two ahead."""
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="store") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= threads + 2:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def sha256_of(content: bytes) -> str:
    """In lower-case hex."""
    return hashlib.sha256(content).hexdigest()


def _unreadable(what: str, place: str, error: OSError) -> Exception:
    """The error for a part of which the system says that it cannot be read; the system's own for any other reason."""
    if error.errno not in UNREADABLE:
        return error
    why = error.strerror or "it cannot be read"
    return BadArtifact(f"{what} cannot be read from the store: {why}: {place}. {_CHECK}")


def _read_again(chunk: Chunk, files: list[SourceFile]) -> bytes:
    """The content of a chunk from the source that is being put. Raises: BadArtifact (the source has changed)."""
    file = next(file for file in files if chunk in file.chunks)
    before = file.chunks[: file.chunks.index(chunk)]
    with file.location.open("rb") as stream:
        stream.seek(sum(piece.size_bytes for piece in before))
        content = stream.read(chunk.size_bytes)
    if sha256_of(content) != chunk.sha256:
        raise changed(file)
    return content


def _pieces_of(content: bytes) -> Iterator[bytes]:
    start = 0
    for size in cut(len(content), []):
        yield content[start : start + size]
        start += size


def _lay_out(manifest: Manifest, directory: Path) -> list[Place]:
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
            places.append(Place(chunk, file, target, offset))
            offset += chunk.size_bytes
    return places
