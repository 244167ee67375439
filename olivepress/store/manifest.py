"""What an artifact is: its files, the chunks that they consist of, and the digest that names it. Pure."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from olivepress.errors import BadArtifact, NotFound

# A reader holds a whole chunk in memory to verify it before it hands out the first byte.
CHUNK_LIMIT_BYTES = 16 * 1024 * 1024
# A hundred bytes a chunk: no model comes near.
MANIFEST_LIMIT_BYTES = 64 * 1024 * 1024

SCHEMA_VERSION = 1
_SHA256_OF_NOTHING = hashlib.sha256().hexdigest()
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
# Linux and macOS bound a name by bytes, NTFS by UTF-16 units: 255 bytes satisfy all three.
_NAME_LIMIT_BYTES = 255
_PATH_LIMIT_BYTES = 1024
_ILLEGAL_ON_NTFS = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
# Windows opens a device for these, whatever follows the first dot; ¹²³ count as digits there.
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Chunk:
    """A piece of a file, named by the SHA-256 of its bytes."""

    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        if not is_sha256(self.sha256):
            raise _bad("a chunk's SHA-256 is not 64 lower-case hexadecimal digits")
        if not 0 < self.size_bytes <= CHUNK_LIMIT_BYTES:
            raise _bad(f"a chunk has {self.size_bytes} bytes; 1 to {CHUNK_LIMIT_BYTES} are allowed")


@dataclass(frozen=True)
class FileEntry:
    """A file of an artifact; its chunks follow each other without a gap. The manifest checks its path."""

    path: str
    size_bytes: int
    sha256: str
    chunks: tuple[Chunk, ...]

    def __post_init__(self) -> None:
        if self.size_bytes != sum(chunk.size_bytes for chunk in self.chunks):
            raise _bad(f"the chunks of '{self.path}' do not add up to its {self.size_bytes} bytes")
        if not is_sha256(self.sha256):
            raise _bad(f"the SHA-256 of '{self.path}' is not 64 lower-case hexadecimal digits")
        known = {0: _SHA256_OF_NOTHING, 1: self.chunks[0].sha256 if self.chunks else ""}
        if self.sha256 != known.get(len(self.chunks), self.sha256):
            raise _bad(f"the SHA-256 of '{self.path}' is not that of its content")


@dataclass(frozen=True)
class Manifest:
    """The files of an artifact, sorted by path. Two artifacts with the same files have the same digest.

    Raises BadArtifact for a set of files that could not be laid out on every platform.
    """

    files: tuple[FileEntry, ...]

    def __post_init__(self) -> None:
        paths = [file.path for file in self.files]
        if paths != sorted(paths):
            raise _bad("its files are not sorted by path")
        check_paths(paths)

    @classmethod
    def of(cls, files: Iterable[FileEntry]) -> "Manifest":
        """The manifest of these files, given in any order."""
        return cls(tuple(sorted(files, key=lambda file: file.path)))

    @classmethod
    def parse(cls, content: bytes) -> "Manifest":
        """Reads canonical JSON as `to_json` writes it, and trusts nothing in it.

        Raises: BadArtifact.
        """
        try:
            manifest = cls(tuple(_file_entry(item) for item in json.loads(content)["files"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _bad("it is not the JSON that olivepress writes") from error
        # One comparison finds repeated and unknown keys, other spellings of a text, and another schema version.
        if manifest.to_json() != content:
            raise _bad("it is not in the canonical form that olivepress writes")
        return manifest

    def to_json(self) -> bytes:
        """Canonical JSON: keys sorted, no spaces, ASCII."""
        files = [
            {
                "path": file.path,
                "size_bytes": file.size_bytes,
                "sha256": file.sha256,
                "chunks": [[chunk.sha256, chunk.size_bytes] for chunk in file.chunks],
            }
            for file in self.files
        ]
        value = {"schema_version": SCHEMA_VERSION, "files": files}
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex: the name of the artifact."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together, before chunks are shared."""
        return sum(file.size_bytes for file in self.files)

    def chunks(self) -> frozenset[Chunk]:
        """The distinct chunks of all files."""
        return frozenset(chunk for file in self.files for chunk in file.chunks)

    def file(self, path: str) -> FileEntry:
        """The entry of one file. Raises: NotFound."""
        for file in self.files:
            if file.path == path:
                return file
        raise NotFound(
            f"Artifact {self.digest[:12]} has no file '{_shown(path)}'. Ask for one that its manifest lists."
        )


def is_sha256(text: str) -> bool:
    """Whether this is a SHA-256 as olivepress writes it: 64 lower-case hexadecimal digits."""
    return _SHA256.fullmatch(text) is not None


def check_paths(paths: list[str]) -> None:
    """Raises BadArtifact unless these paths are relative, posix, and legal on Linux, macOS and Windows.

    A file system that ignores case must neither make one of two of them, nor need a file where a directory is.
    """
    seen: dict[str, tuple[str, bool]] = {}
    for path in paths:
        _check_path(path)
        names = path.split("/")
        for depth in range(1, len(names) + 1):
            prefix, is_file = "/".join(names[:depth]), depth == len(names)
            other, other_is_file = seen.setdefault(_folded(prefix), (prefix, is_file))
            if other != prefix or is_file != other_is_file:
                raise _bad(f"'{other}' and '{path}' cannot lie in one directory on Windows or macOS")
    if len(set(paths)) != len(paths):
        raise _bad("it lists a path twice")


def _check_path(path: str) -> None:
    if not _fits(path, _PATH_LIMIT_BYTES):
        raise _bad(f"the path '{_shown(path)}' is longer than {_PATH_LIMIT_BYTES} bytes or is not Unicode text")
    for name in path.split("/"):
        if name in ("", ".", ".."):
            raise _bad(f"the path '{_shown(path)}' is not a plain path inside the artifact")
        if _ILLEGAL_ON_NTFS.search(name) or name[-1] in ". " or _DEVICE.fullmatch(name):
            raise _bad(f"the path '{_shown(path)}' has a name that Windows does not allow")
        if not _fits(name, _NAME_LIMIT_BYTES):
            raise _bad(f"the path '{_shown(path)}' has a name longer than {_NAME_LIMIT_BYTES} bytes")


def _file_entry(item: Any) -> FileEntry:
    chunks = tuple(Chunk(_text(sha256), _number(size)) for sha256, size in item["chunks"])
    return FileEntry(_text(item["path"]), _number(item["size_bytes"]), _text(item["sha256"]), chunks)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError
    return value


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def _fits(text: str, limit_bytes: int) -> bool:
    try:
        return len(text.encode()) <= limit_bytes
    except UnicodeEncodeError:  # a lone surrogate: how Python shows a file name that is not UTF-8
        return False


def _shown(path: str) -> str:
    """A path that may hold anything, fit for a message of one line."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in path)
    return plain if len(plain) <= 100 else plain[:100] + "…"


def _bad(reason: str) -> BadArtifact:
    return BadArtifact(
        f"The artifact's manifest is refused: {reason}. Rename or remove that file and put the directory again; "
        "if the manifest came from a store, restore it from a backup."
    )
