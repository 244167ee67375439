"""The store as a directory, safe with many writers on many machines and with a kill at any point.

    chunks/ab/abcdef…           a chunk, named by its SHA-256, read-only
    manifests/ab/abcdef….json   an artifact's manifest, named by its SHA-256
    tmp/host-pid-random         a file that a writer has begun; what a dead writer leaves lies only here
    trash/cutoff-random/…       what nothing refers to any more, until it is removed (collecting.py)
    quarantine/abcdef….random   what was found damaged and taken out of use (keeping.py)
    check.json                  how far a check has come

A file is written under a name in tmp/, brought to the disk, and renamed. A manifest is written after all of its
chunks have reached the disk, so an artifact that can be seen is complete.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from olivepress.errors import BadArtifact, NotFound
from olivepress.store.artifacts import ArtifactStore, Place
from olivepress.store.cloning import clone_into, may_share
from olivepress.store.durable import full_disk_is_named, renew, sweep, sync_directory, write_whole
from olivepress.store.manifest import Chunk, Manifest, is_sha256
from olivepress.store.places import UNREADABLE, Places, read_part
from olivepress.store.protocol import StoreStats

__all__ = ["DirectoryStore", "StoreStats"]


class DirectoryStore(ArtifactStore):
    """Artifacts in the directory `root`, local or on a network file system; it is made when it is missing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.places = Places(root)
        self._may_clone = True
        self.places.make()

    @property
    def name(self) -> str:
        """Its directory."""
        return str(self.root)

    def has(self, digest: str) -> bool:
        """See `Store.has`."""
        try:
            if not is_sha256(digest) or renew(self.places.manifest(digest), self.places.tmp) is None:
                return False
            return not any(True for _ in self._renew_all(None, self.manifest(digest).chunks()))
        except (NotFound, BadArtifact):
            return False
        except OSError as error:
            return _is_damage(error)

    def free_bytes(self) -> int | None:
        """See `Store.free_bytes`."""
        return shutil.disk_usage(self.root).free

    def sweep_temporary(self, older_than_s: float) -> int:
        """Removes what dead writers left in tmp/ and answers how many files. A living writer needs seconds for one.

        Age is told by the file system's own clock: the store may be shared by machines whose clocks differ.
        """
        return sweep(self.places.tmp, older_than_s)

    def place_of_chunk(self, sha256: str) -> str:
        """Its path."""
        return str(self.places.chunk(sha256))

    def place_of_manifest(self, digest: str) -> str:
        """Its path."""
        return str(self.places.manifest(digest))

    def is_quarantined(self, sha256: str) -> bool:
        """Whether a check found this chunk damaged and took it out of use."""
        return any(self.places.quarantine.glob(f"{sha256}.*"))

    def chunk_sizes(self) -> Iterator[int]:
        """The sizes in bytes of all chunks."""
        return (file.size_bytes for file in self.places.chunks())

    def manifest_digests(self) -> Iterator[str]:
        """The digests of all artifacts that can be seen."""
        return (file.sha256 for file in self.places.manifests())

    def _has_chunk(self, chunk: Chunk) -> bool:
        # The length tells a chunk that the file system cut off; it is then written anew.
        path = self.places.chunk(chunk.sha256)
        try:
            return renew(path, self.places.tmp) == chunk.size_bytes and path.is_file()
        except OSError as error:
            return _is_damage(error)

    def _write_chunk(self, chunk: Chunk, content: bytes) -> None:
        with _damage_is_named(path := self.places.chunk(chunk.sha256)):
            write_whole(path, content, self.places.tmp)

    def _share_chunk(self, place: Place) -> bool:
        if not self._may_clone or not may_share(place.offset, place.chunk.size_bytes, place.file.size_bytes):
            return False
        source = self.places.chunk(place.chunk.sha256)
        try:
            is_shared = clone_into(source, place.target, place.offset)
        except FileNotFoundError:  # it was read in the trash
            return False
        if not is_shared:
            # This file system cannot, or the target is on another: not asked again for every chunk.
            self._may_clone = False
        return is_shared

    def _load_chunk(self, sha256: str) -> bytes:
        return self.places.read(self.places.chunk(sha256))

    def _load_manifest(self, digest: str) -> bytes:
        return self.places.read(self.places.manifest(digest))

    def _renew_all(self, digest: str | None, chunks: frozenset[Chunk]) -> Iterator[Chunk]:
        # Its manifest is renewed where it is put: `_put_manifest`.
        return (chunk for chunk in chunks if not self._has_chunk(chunk))

    def _put_manifest(self, manifest: Manifest) -> Manifest:
        # Also for chunks that were there: their writer may not have come to this yet.
        shelves = {self.places.chunk(chunk.sha256).parent for chunk in manifest.chunks()}
        for directory in shelves:
            sync_directory(directory)
        sync_directory(self.root / "chunks")
        path, content = self.places.manifest(manifest.digest), manifest.to_json()
        with _damage_is_named(path):
            if not self._renew_manifest(path, content):
                write_whole(path, content, self.places.tmp)
        sync_directory(path.parent)
        sync_directory(self.root / "manifests")
        return manifest

    def _renew_manifest(self, path: Path, content: bytes) -> bool:
        try:
            return renew(path, self.places.tmp) is not None and read_part(path) == content
        except FileNotFoundError:  # taken out between the two; a copy in its place does no harm
            return False

    def room_is_named(self, needed_bytes: int) -> AbstractContextManager[None]:
        return full_disk_is_named(self.root, needed_bytes)


def _is_damage(error: OSError) -> bool:
    """False, as the answer to whether something is there, where the error says that it cannot be read; else raised."""
    if error.errno not in UNREADABLE:
        raise error
    return False


@contextmanager
def _damage_is_named(path: Path) -> Iterator[None]:
    """Turns what the system says of a place that cannot be written to into BadArtifact."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNREADABLE - {errno.EIO} | {errno.EEXIST, errno.ENOTEMPTY}:
            raise  # a broken disk mends nobody's check
        raise BadArtifact(
            f"{path} cannot be written: {error.strerror}. Run `olivepress store check --repair` as the user that the "
            "store belongs to, and try again."
        ) from error
