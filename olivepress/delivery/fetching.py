"""Brings the chunks of a version over the API: those that are not here, each verified, going on at the byte where a
connection or the process ended.

    PARTIAL/lock       held while somebody fetches there
    PARTIAL/files/     the files in full length, with the chunks that are there already
    PARTIAL/parts/     the beginnings of chunks that were on their way, named by their SHA-256

Nothing is noted of what is done: whoever goes on hashes what is in files/ and knows. So neither a kill nor a power cut
can leave a note that is wrong. What another version on this machine has in common with the new one is found in the
same way, by cutting and hashing its files as the store does.

Plain files, seek and write: the same on Linux, macOS and Windows.
"""

import contextlib
import errno
import hashlib
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from olivepress.client import Client, OnBytes
from olivepress.errors import BadArtifact, DiskFull, ServiceUnavailable
from olivepress.file_lock import exclusive
from olivepress.store.cutting import piece_sizes
from olivepress.store.manifest import Chunk, FileEntry, Manifest

Json = dict[str, Any]

CONNECTIONS = 4
# A request for several chunks in a row ends before this, so that connections share the work evenly.
SPAN_BYTES = 8 * 1024 * 1024
# A connection that breaks is tried again for about a minute; whenever bytes arrived, from the beginning of the row.
WAITS_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
# Damaged on the way: a proxy, or memory. More than that is no accident.
DAMAGED_TRIES = 3
LOCK = "lock"
TRIES_TO_HOLD = 100
NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@dataclass(frozen=True)
class _Place:
    """Where a chunk goes."""

    path: str
    offset: int


@dataclass(frozen=True)
class _Span:
    """Chunks that follow each other in a file and are asked for together."""

    path: str
    offset: int
    chunks: tuple[Chunk, ...]


@contextlib.contextmanager
def held(partial: Path, what: str) -> Iterator[None]:
    """Hold the lock of a pull's unfinished state, which goes in the end if `discard` has emptied it.

    Raises:
        ServiceUnavailable: another process pulls there.
    """
    with contextlib.ExitStack() as stack:
        for tries_left in reversed(range(TRIES_TO_HOLD)):
            try:
                partial.mkdir(exist_ok=True)
                lock = exclusive(partial / LOCK, wait_s=0.0, what=f"the pull of {what} to {partial}")
                stack.enter_context(lock)
                break
            except (FileNotFoundError, FileExistsError):  # whoever pulled there has ended just now
                if not tries_left:
                    raise
        yield
    # Where an open file cannot be removed, `discard` has left it; whoever holds it by now keeps it.
    if sys.platform == "win32" and partial.is_dir() and [path.name for path in partial.iterdir()] == [LOCK]:
        _remove_empty(partial)


def discard(partial: Path) -> None:
    """Remove what a pull that came to its end has left; the caller holds its lock, so nobody else is at it."""
    for path in partial.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    _remove_empty(partial)


def _remove_empty(partial: Path) -> None:
    with contextlib.suppress(OSError):
        (partial / LOCK).unlink()
        partial.rmdir()


@dataclass
class Fetch:
    """Brings all files of a version into `partial`/files, over several connections.

    Args:
        partial: its unfinished state, from now or from before; the caller holds its lock.
    """

    client: Client
    version: Json
    manifest: Manifest
    partial: Path
    on_bytes: OnBytes | None = None
    sleep: Callable[[float], object] | None = None
    """Waits, in seconds, before a connection is tried again."""
    received_bytes: int = 0
    _done_bytes: int = 0
    _missing: dict[Chunk, list[_Place]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def files(self) -> Path:
        """Where the files are."""
        return self.partial / "files"

    @property
    def parts(self) -> Path:
        """Where the beginnings of chunks are."""
        return self.partial / "parts"

    def run(self, reuse: Sequence[Path] = (), keep: frozenset[str] = frozenset()) -> None:
        """Do it.

        Args:
            reuse: directories whose files may have some of the chunks.
            keep: names in `files` that are not of the version and stay.

        Raises:
            BadArtifact, DiskFull, ServiceUnavailable: see `olivepress.delivery.pull.pull`.
        """
        with _full_disk_is_named(self.partial, self.manifest.size_bytes):
            self.parts.mkdir(exist_ok=True)
            self._lay_out(keep)
            for directory in reuse:
                if self._missing and directory.is_dir():
                    self._take_from(directory)
            self._sweep_parts()
            self._check_room()
            self._download()
            for file in self.manifest.files:
                _sync(self.files / file.path)

    def move_into(self, directory: Path) -> None:
        """Hand the files over to an existing directory."""
        for file in self.manifest.files:
            target = directory / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.files / file.path).replace(target)

    def _lay_out(self, keep: frozenset[str]) -> None:
        """Make every file in full length, remove what is not of the version, and see which chunks are there."""
        self.files.mkdir(exist_ok=True)
        _remove_strays(self.files, {file.path for file in self.manifest.files} | keep)
        found: set[Chunk] = set()
        for file in self.manifest.files:
            target = self.files / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            was_there = target.exists()
            with target.open("ab") as stream:
                if stream.tell() != file.size_bytes:
                    stream.truncate(file.size_bytes)
            is_right = right_chunks(target, file) if was_there else [False] * len(file.chunks)
            offset = 0
            for chunk, is_there in zip(file.chunks, is_right, strict=True):
                if is_there:
                    found.add(chunk)
                    self._advance(chunk.size_bytes)
                else:
                    self._missing.setdefault(chunk, []).append(_Place(file.path, offset))
                offset += chunk.size_bytes
        for chunk in found & self._missing.keys():
            self._write(chunk, self._content_here(chunk))

    def _content_here(self, chunk: Chunk) -> bytes:
        """A chunk that is in one file already and goes to another one, too."""
        for file in self.manifest.files:
            offset = 0
            for other in file.chunks:
                if other == chunk and _Place(file.path, offset) not in self._missing[chunk]:
                    return _read_at(self.files / file.path, offset, chunk.size_bytes)
                offset += other.size_bytes
        raise AssertionError  # it was found there

    def _take_from(self, directory: Path) -> None:
        """Copy the missing chunks that a directory has, from its files of the same names."""
        for file in self.manifest.files:
            source = directory / file.path
            wanted = {chunk for chunk in file.chunks if chunk in self._missing}
            if not wanted or source.is_symlink() or not source.is_file():
                continue
            sizes = {chunk.size_bytes for chunk in wanted}
            with source.open("rb") as stream:
                for size in piece_sizes(source, source.stat().st_size):
                    if size not in sizes:
                        stream.seek(size, os.SEEK_CUR)
                        continue
                    content = stream.read(size)
                    if len(content) < size:  # somebody cut it off just now
                        break
                    chunk = _chunk_of(content)
                    if chunk in self._missing:
                        self._write(chunk, content)

    def _sweep_parts(self) -> None:
        wanted = {chunk.sha256 for chunk in self._missing}
        for part in self.parts.iterdir():
            if part.name not in wanted:
                part.unlink()

    def _check_room(self) -> None:
        needed = sum(chunk.size_bytes * len(places) for chunk, places in self._missing.items())
        free = shutil.disk_usage(self.partial).free
        # Files on some file systems take their full length at once, and what is missing is then counted twice.
        on_disk = sum(_allocated(self.files / file.path) for file in self.manifest.files)
        if free + on_disk < min(needed, self.manifest.size_bytes):
            raise DiskFull(
                f"{self.version['version']} needs {needed / 1e6:.0f} MB more in {self.partial.parent}, where "
                f"{free / 1e6:.0f} MB are free; free some space and try again"
            )

    def _download(self) -> None:
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="pull") as pool:
            downloads: list[Future[None]] = [pool.submit(self._get, span) for span in self._spans()]
            try:
                for download in downloads:
                    download.result()
            finally:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _spans(self) -> list[_Span]:
        """The missing chunks, each once, in rows as they lie in the files."""
        wanted = set(self._missing)
        spans: list[_Span] = []
        for file in self.manifest.files:
            row: list[Chunk] = []
            offset = 0
            for chunk in (*file.chunks, None):
                size = sum(each.size_bytes for each in row)
                if row and (chunk is None or chunk not in wanted or size + chunk.size_bytes > SPAN_BYTES):
                    spans.append(_Span(file.path, offset - size, tuple(row)))
                    row = []
                if chunk is not None:
                    if chunk in wanted:
                        wanted.discard(chunk)
                        row.append(chunk)
                    offset += chunk.size_bytes
        return spans

    def _get(self, span: _Span) -> None:
        """Download a row of chunks; a connection that breaks is tried again from the byte where it broke."""
        rest, offset, failures, damaged = list(span.chunks), span.offset, 0, 0
        while rest and not self._stop.is_set():
            received_before = self.received_bytes
            try:
                # A copy: `rest` grows shorter meanwhile.
                for content in self._chunks(span.path, offset, tuple(rest)):
                    self._write(rest[0], content)
                    offset += rest.pop(0).size_bytes
                    failures = damaged = 0
            except BadArtifact:
                damaged += 1
                if damaged >= DAMAGED_TRIES:
                    raise
            except ServiceUnavailable:
                failures = 0 if self.received_bytes > received_before else failures
                if failures >= len(WAITS_S):
                    raise
                # Not all connections at the same moment.
                (self.sleep or self._stop.wait)(WAITS_S[failures] * random.uniform(0.5, 1.0))
                failures += 1

    def _chunks(self, path: str, offset: int, chunks: Sequence[Chunk]) -> Iterator[bytes]:
        """The contents of these chunks, verified; the first goes on behind what is there of it.

        Raises:
            BadArtifact: one arrived damaged; what is there of it is removed.
            ServiceUnavailable: the connection broke; what arrived is kept.
        """
        end = offset + sum(chunk.size_bytes for chunk in chunks)
        part = self.parts / chunks[0].sha256
        begun = part.read_bytes()[: chunks[0].size_bytes] if part.exists() else b""
        blocks = self.client.read_range(self.version, path, offset + len(begun), end)
        held_over = b""
        for place, chunk in enumerate(chunks):
            content = bytearray(begun if place == 0 else b"")
            part = self.parts / chunk.sha256
            with part.open("ab") as stream:
                while len(content) < chunk.size_bytes:
                    block = held_over or next(blocks, b"")
                    if not block:
                        raise ServiceUnavailable(f"the connection to {self.client.url} ended too early; try again")
                    taken = block[: chunk.size_bytes - len(content)]
                    held_over = block[len(taken) :]
                    stream.write(taken)
                    stream.flush()  # a kill from here on does not lose it
                    content += taken
                    self._count(len(taken))
            part.unlink()
            if _chunk_of(bytes(content)) != chunk:
                raise BadArtifact(
                    f"{path} of {self.version['version']} arrived damaged {DAMAGED_TRIES} times; try again"
                )
            yield bytes(content)

    def _count(self, received_bytes: int) -> None:
        with self._lock:
            self.received_bytes += received_bytes
        if self._stop.is_set():
            raise ServiceUnavailable("another connection of this pull failed")

    def _write(self, chunk: Chunk, content: bytes) -> None:
        """Put a chunk's verified content wherever it belongs."""
        with self._lock:
            places = self._missing.pop(chunk)
        for place in places:
            with (self.files / place.path).open("r+b") as stream:
                stream.seek(place.offset)
                stream.write(content)
        self._advance(chunk.size_bytes * len(places))

    def _advance(self, size_bytes: int) -> None:
        with self._lock:
            self._done_bytes += size_bytes
            if self.on_bytes:
                self.on_bytes(self._done_bytes, self.manifest.size_bytes)


def _chunk_of(content: bytes) -> Chunk:
    return Chunk(hashlib.sha256(content).hexdigest(), len(content))


def right_chunks(path: Path, file: FileEntry) -> list[bool]:
    """Which chunks of a file are there."""
    with path.open("rb") as stream:
        contents = (stream.read(chunk.size_bytes) for chunk in file.chunks)
        return [
            bool(content) and _chunk_of(content) == chunk for content, chunk in zip(contents, file.chunks, strict=True)
        ]


def _read_at(path: Path, offset: int, size_bytes: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size_bytes)


def _remove_strays(directory: Path, wanted: set[str]) -> None:
    """Remove what an unfinished pull of something else left."""
    for path in sorted(directory.rglob("*"), reverse=True):
        name = path.relative_to(directory).as_posix()
        if path.is_dir() and not path.is_symlink():
            if not any(other.startswith(f"{name}/") for other in wanted):
                shutil.rmtree(path)
        elif name not in wanted or path.is_symlink():
            path.unlink()


def _sync(path: Path) -> None:
    with path.open("r+b") as stream:
        os.fsync(stream.fileno())


def _allocated(path: Path) -> int:
    status = path.stat()
    # Windows tells no blocks; there a file that is made longer takes its room at once.
    return getattr(status, "st_blocks", -(-status.st_size // 512)) * 512


@contextlib.contextmanager
def _full_disk_is_named(directory: Path, needed_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise DiskFull(
            f"no room is left in {directory.parent} for {needed_bytes / 1e6:.0f} MB; free some space and try again: "
            "what has arrived is kept"
        ) from error
