"""A store's parts one by one, for whoever looks after it: finds damage, takes it out of use, puts content back.

A damaged part is never deleted. It goes to quarantine/, from where no reader takes it and no collector removes it: what
is left of it may yet help somebody.
"""

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from olivepress.errors import NotAllowed
from olivepress.store.artifacts import ArtifactStore
from olivepress.store.directory import DirectoryStore
from olivepress.store.durable import sync_directory, write_whole
from olivepress.store.manifest import CHUNK_LIMIT_BYTES, MANIFEST_LIMIT_BYTES, Manifest
from olivepress.store.places import open_file, read_part, stored_files

NOTE = "check.json"


@dataclass(frozen=True, order=True)
class Part:
    """A chunk, or the manifest of an artifact, by the SHA-256 that names it."""

    sha256: str
    is_manifest: bool = False


@dataclass(frozen=True)
class HeldPart:
    """A part as a listing showed it: it may be gone by now."""

    part: Part
    size_bytes: int


class Keeper(Protocol):
    """Looks after one store. Raises ServiceUnavailable where a bucket does not answer, OSError where a disk fails."""

    @property
    def store(self) -> ArtifactStore:
        """What it looks after."""

    def manifests(self) -> Iterator[HeldPart]:
        """Those in their places."""

    def chunks(self, after: str = "") -> Iterator[HeldPart]:
        """Those in their places whose names come after this one, in the order of their names."""

    def read(self, part: Part) -> bytes:
        """Its content as it is in its place, or the beginning of what is far too long.

        Raises: FileNotFoundError, OSError (the disk cannot read it).
        """

    def is_right(self, part: Part) -> bool:
        """Whether its content has the SHA-256 that names it. Raises: FileNotFoundError, OSError."""

    def copies(self, part: Part) -> Iterator[bytes]:
        """What else the store has under this name, in its trash and its quarantine; it may be damaged, too."""

    def clear_way(self, part: Part) -> None:
        """Mends what keeps the part's place from being reached: permissions, something else than a directory."""

    def put(self, part: Part, content: bytes) -> None:
        """Puts right content into its place; what is there goes to the quarantine. Raises: DiskFull."""

    def quarantine(self, part: Part) -> bool:
        """Takes a damaged part out of use; False if it is right by now, or gone."""

    def set_aside(self, digest: str) -> bool:
        """Takes a manifest whose chunks are lost out of use; False if they are there by now, or it is gone."""

    def quarantined(self) -> int:
        """How many parts lie in the quarantine."""

    def read_note(self) -> bytes | None:
        """What a check has noted here of how far it came."""

    def write_note(self, content: bytes | None) -> None:
        """Notes how far a check came; None: it is over."""


@dataclass(frozen=True)
class DirectoryKeeper:
    """Looks after a directory store."""

    store: DirectoryStore

    def manifests(self) -> Iterator[HeldPart]:
        """See `Keeper.manifests`."""
        return (HeldPart(Part(file.sha256, True), file.size_bytes) for file in self.store.places.manifests())

    def chunks(self, after: str = "") -> Iterator[HeldPart]:
        """See `Keeper.chunks`."""
        for shelf in sorted((self.store.root / "chunks").iterdir()):
            if shelf.name >= after[:2]:
                for file in sorted(stored_files(shelf), key=lambda file: file.sha256):
                    if file.sha256 > after and file.sha256[:2] == shelf.name:
                        yield HeldPart(Part(file.sha256), file.size_bytes)

    def read(self, part: Part) -> bytes:
        """See `Keeper.read`."""
        return read_part(self._home(part))

    def is_right(self, part: Part) -> bool:
        """See `Keeper.is_right`."""
        return _is_right(self._home(part), part)

    def copies(self, part: Part) -> Iterator[bytes]:
        """See `Keeper.copies`."""
        places, home = self.store.places, self._home(part)
        elsewhere = (path for path in home.parent.parent.glob(f"*/{home.name}") if path != home)
        for path in (*places.trash.glob(f"*/{home.name}"), *places.quarantine.glob(f"{home.name}.*"), *elsewhere):
            with contextlib.suppress(OSError), open_file(path) as stream:
                yield stream.read(min(os.fstat(stream.fileno()).st_size, _limit_bytes(part)) + 1)

    def clear_way(self, part: Part) -> None:
        """See `Keeper.clear_way`."""
        home = self._home(part)
        with contextlib.suppress(OSError):  # another user's: whoever puts something there is told
            if os.path.lexists(home.parent) and not home.parent.is_dir():
                home.parent.rename(self._quarantine_path(home.parent))
            home.parent.mkdir(exist_ok=True)
            _allow(home.parent, stat.S_IRWXU)
            if stat.S_ISREG(home.lstat().st_mode):
                _allow(home, stat.S_IRUSR)

    def put(self, part: Part, content: bytes) -> None:
        """See `Keeper.put`."""
        home = self._home(part)
        # A link, so that readers find the name all the time.
        with contextlib.suppress(FileNotFoundError):
            try:
                os.link(home, self._quarantine_path(home))
            except FileNotFoundError:
                raise
            except OSError:  # a file system without hard links
                self.quarantine(part)
        with self.store.room_is_named(len(content)), _foreign_is_named(home):
            write_whole(home, content, self.store.places.tmp)
        sync_directory(home.parent)
        sync_directory(home.parent.parent)

    def quarantine(self, part: Part) -> bool:
        """See `Keeper.quarantine`."""
        home = self._home(part)
        aside = self._quarantine_path(home)
        try:
            with _foreign_is_named(home):
                home.rename(aside)
        except (FileNotFoundError, NotADirectoryError):
            return False
        with contextlib.suppress(OSError):
            # A writer may have put it right just before the rename.
            if _is_right(aside, part):
                aside.rename(home)
                return False
        sync_directory(home.parent)
        return True

    def set_aside(self, digest: str) -> bool:
        """See `Keeper.set_aside`."""
        home = self.store.places.manifest(digest)
        aside = self._quarantine_path(home)
        try:
            chunks = Manifest.parse(read_part(home)).chunks()
            home.rename(aside)
        except FileNotFoundError:
            return False
        # Looked at after the rename: a writer that puts it from now on writes the manifest anew.
        if self.store.missing(chunks):
            return True
        aside.rename(home)
        return False

    def quarantined(self) -> int:
        """See `Keeper.quarantined`."""
        return sum(1 for _ in self.store.places.quarantine.iterdir())

    def read_note(self) -> bytes | None:
        """See `Keeper.read_note`."""
        with contextlib.suppress(OSError):  # one that cannot be read counts for nothing
            return read_part(self._note())
        return None

    def write_note(self, content: bytes | None) -> None:
        """See `Keeper.write_note`."""
        if self._note().is_dir():
            self._note().rename(self._quarantine_path(self._note()))
        if content is None:
            self._note().unlink(missing_ok=True)
        else:
            write_whole(self._note(), content, self.store.places.tmp)

    def _note(self) -> Path:
        return self.store.root / NOTE

    def _home(self, part: Part) -> Path:
        places = self.store.places
        return places.manifest(part.sha256) if part.is_manifest else places.chunk(part.sha256)

    def _quarantine_path(self, home: Path) -> Path:
        return self.store.places.quarantine / f"{home.name}.{secrets.token_hex(4)}"


def _is_right(path: Path, part: Part) -> bool:
    with open_file(path) as stream:
        if os.fstat(stream.fileno()).st_size > _limit_bytes(part):
            return False
        return hashlib.file_digest(stream, "sha256").hexdigest() == part.sha256


def _limit_bytes(part: Part) -> int:
    return MANIFEST_LIMIT_BYTES if part.is_manifest else CHUNK_LIMIT_BYTES


def _allow(path: Path, wanted: int) -> None:
    """Gives the owner these permissions; raises OSError where this user is not the owner."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & wanted != wanted:
        path.chmod(mode | wanted)


@contextlib.contextmanager
def _foreign_is_named(path: Path) -> Iterator[None]:
    """Turns what the system says of another user's directory into NotAllowed."""
    try:
        yield
    except PermissionError as error:
        raise NotAllowed(
            f"{path} cannot be replaced by this user; run this as the user that the store belongs to, and see that "
            f"{path.parent} is theirs"
        ) from error
