"""A model version as one file, for machines without a network: a plain tar, the same bytes every time.

    <name>-<number>.json         what it is: the version with its report and provenance, and the artifact's manifest
    <name>-<number>/<path> …     its files, in the order of the manifest

`tar xf` and `sha256sum --check SHA256SUMS` work on it without olivepress. Reading trusts nothing: the list at the
beginning says which entries follow, so each header is compared, byte by byte, with the one that belongs there. A link,
a device, a path elsewhere, an entry too many, a sparse or packed file has no chance to be understood.
"""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import SEEK_CUR, BufferedReader
from pathlib import Path
from typing import Any

from olivepress.errors import BadArtifact, DiskFull, OlivepressError, PermanentError
from olivepress.foundry.inference_model import INFERENCE_MODEL_FILE, SUMS_FILE, foundry_name
from olivepress.registry import check_model_name
from olivepress.store.manifest import FileEntry, Manifest

Json = dict[str, Any]
OnBytes = Callable[[int, int], None]

FORMAT = 1
BLOCK = tarfile.BLOCKSIZE
RECORD = tarfile.RECORDSIZE
# Reports and lists of chunks are thousands of times smaller, and this is read at once.
DESCRIPTION_LIMIT_BYTES = 64 * 1024 * 1024
FILES_LIMIT = 10_000
COPY_BYTES = 1 << 20
# What of a version stays the same for ever.
KEPT = (
    "model", "number", "recipe", "precision", "family", "size_bytes", "package_digest", "artifact_digest", "report",
    "provenance",
)  # fmt: skip


@dataclass(frozen=True)
class Archive:
    """An archive of which all was checked but the content of its files; that is checked when they are extracted."""

    file: Path
    model: str
    number: int
    version: Json
    manifest: Manifest
    files_at: int
    """Where the first file's header begins."""

    @property
    def stem(self) -> str:
        """The directory that `tar xf` makes."""
        return f"{self.model}-{self.number}"


def write_archive(file: Path, version: Json, manifest: Manifest, files: Path) -> None:
    """Write a version (as `Client.version` gave it), whose files lie in the directory `files`, to a new file.

    Raises:
        BadArtifact: a file is not the one that the manifest lists.
    """
    stem = f"{version['model']}-{version['number']}"
    with file.open("xb") as stream:
        description = _description(version, manifest)
        stream.write(_header(f"{stem}.json", len(description)) + description + _padding(len(description)))
        for entry in manifest.files:
            stream.write(_header(f"{stem}/{entry.path}", entry.size_bytes))
            digest = hashlib.sha256()
            size_bytes = 0
            with (files / entry.path).open("rb") as source:
                while block := source.read(COPY_BYTES):
                    digest.update(block)
                    size_bytes += len(block)
                    stream.write(block)
            if size_bytes != entry.size_bytes or digest.hexdigest() != entry.sha256:
                raise BadArtifact(
                    f"{entry.path} of {version['version']} changed while it was exported; export it again"
                )
            stream.write(_padding(size_bytes))
        stream.write(_ending(stream.tell()))


def read_archive(file: Path) -> Archive:
    """Look at an archive: what it says it is, and whether its entries are those, in their order and sizes.

    Raises:
        BadArtifact: it is not what `write_archive` writes, it is cut off, or it describes no legal version.
        PermanentError: a later release wrote it.
    """
    with file.open("rb") as stream:
        described_bytes = _size_of_description(file, stream.read(BLOCK))
        content = stream.read(described_bytes)
        padding = stream.read(-described_bytes % BLOCK)
    description = _parsed(file, content)
    model, number, manifest = _checked(file, description)
    archive = Archive(file, model, number, description["version"], manifest, BLOCK + len(content) + len(padding))
    expected = _header(f"{archive.stem}.json", described_bytes) + content + _padding(described_bytes)
    with file.open("rb") as stream:
        if stream.read(len(expected)) != expected or _description(archive.version, manifest) != content:
            raise _bad(file, "its description is not in the form that olivepress writes")
    size_bytes = file.stat().st_size
    if size_bytes != (right := _length(archive)):
        raise _bad(
            file, f"it has {size_bytes} bytes where its own list makes {right}: it is cut off, or has more in it"
        )
    _check_headers(archive)
    return archive


def extract(archive: Archive, directory: Path, on_bytes: OnBytes | None = None) -> None:
    """Write all files into an existing directory, each verified; a file that is there already is an error.

    Raises:
        BadArtifact: an entry is not the one that belongs there, or a file is damaged.
        DiskFull: the directory has less room than all files take. A small archive can promise much: as a sparse file.
    """
    free = shutil.disk_usage(directory).free
    if archive.manifest.size_bytes > free:
        raise DiskFull(
            f"{archive.model}:{archive.number} needs {archive.manifest.size_bytes / 1e6:.0f} MB in {directory.parent}, "
            f"where {free / 1e6:.0f} MB are free; free some space and try again"
        )
    done_bytes = 0
    for entry, blocks in file_contents(archive):
        target = directory / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with target.open("xb") as out:
            for block in blocks:
                digest.update(block)
                out.write(block)
                done_bytes += len(block)
                if on_bytes:
                    on_bytes(done_bytes, archive.manifest.size_bytes)
        if digest.hexdigest() != entry.sha256:
            raise _bad(archive.file, f"its file '{entry.path}' is damaged")


def file_contents(archive: Archive) -> Iterator[tuple[FileEntry, Iterator[bytes]]]:
    """Each file with its content, which the caller reads to its end before the next one, and holds against its SHA-256.

    Raises:
        BadArtifact: an entry is not the one that belongs there.
    """
    with archive.file.open("rb") as stream:
        stream.seek(archive.files_at)
        for entry in archive.manifest.files:
            _expect(archive.file, stream, _header(f"{archive.stem}/{entry.path}", entry.size_bytes), entry.path)
            yield entry, _blocks(stream, entry.size_bytes)
            _expect(archive.file, stream, _padding(entry.size_bytes), entry.path)
        _expect(archive.file, stream, _ending(stream.tell()), "the end")


def _description(version: Json, manifest: Manifest) -> bytes:
    """Canonical JSON, so that one version has one archive."""
    value = {
        "format": FORMAT,
        "version": {name: version[name] for name in KEPT},
        "manifest": json.loads(manifest.to_json()),
    }
    return json.dumps(value, sort_keys=True, indent=1).encode() + b"\n"


def _parsed(file: Path, content: bytes) -> Json:
    try:
        description = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _bad(file, "its description is no JSON") from error
    if not isinstance(description, dict) or set(description) != {"format", "version", "manifest"}:
        raise _bad(file, "its description has other parts than a version and a manifest")
    if description["format"] != FORMAT:
        raise PermanentError(
            f"{file} has the archive format {description['format']!r} where {FORMAT} is known; import it with the "
            "release of olivepress that exported it, or a newer one"
        )
    return description


def _checked(file: Path, description: Json) -> tuple[str, int, Manifest]:
    """The name, the number and the manifest that a description gives. Raises: BadArtifact."""
    version = description["version"]
    if not isinstance(version, dict) or set(version) != set(KEPT):
        raise _bad(file, "its version lacks a part, or has one that is not known")
    model, number = version["model"], version["number"]
    if not isinstance(model, str) or not isinstance(number, int) or isinstance(number, bool):
        raise _bad(file, "its version has no name or no number")
    try:
        foundry_name(check_model_name(model), number)
        manifest = Manifest.parse(json.dumps(description["manifest"], sort_keys=True, separators=(",", ":")).encode())
    except OlivepressError as error:
        raise _bad(file, str(error)) from error
    if manifest.digest != version["artifact_digest"]:
        raise _bad(file, "its list of files is not that of its version")
    paths = {entry.path for entry in manifest.files}
    if len(paths) > FILES_LIMIT or not {SUMS_FILE, INFERENCE_MODEL_FILE} <= paths:
        raise _bad(file, f"it has more than {FILES_LIMIT} files, or lacks {SUMS_FILE} or {INFERENCE_MODEL_FILE}")
    return model, number, manifest


def _size_of_description(file: Path, header: bytes) -> int:
    """What the first header says, of which the rest is compared later."""
    try:
        size_bytes = int(header[124:135].decode("ascii"), 8)
    except ValueError:
        raise _bad(file, "it does not begin as a tar does, or it is packed: unpack it first") from None
    if not 0 < size_bytes <= DESCRIPTION_LIMIT_BYTES or len(header) < BLOCK:
        raise _bad(file, "its description is empty or too long")
    return size_bytes


def _header(name: str, size_bytes: int) -> bytes:
    """The header of a regular file: no time, no owner; in the extended form only where the name or size needs it."""
    entry = tarfile.TarInfo(name)
    entry.size = size_bytes
    entry.mode = 0o644
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _padding(size_bytes: int) -> bytes:
    return bytes(-size_bytes % BLOCK)


def _ending(position: int) -> bytes:
    """Two empty blocks, and more up to a whole record, as tar has it."""
    return bytes(2 * BLOCK + -(position + 2 * BLOCK) % RECORD)


def _length(archive: Archive) -> int:
    position = archive.files_at
    for entry in archive.manifest.files:
        position += len(_header(f"{archive.stem}/{entry.path}", entry.size_bytes))
        position += entry.size_bytes + -entry.size_bytes % BLOCK
    return position + len(_ending(position))


def _check_headers(archive: Archive) -> None:
    """All but the content of the files. Raises: BadArtifact."""
    with archive.file.open("rb") as stream:
        stream.seek(archive.files_at)
        for entry in archive.manifest.files:
            _expect(archive.file, stream, _header(f"{archive.stem}/{entry.path}", entry.size_bytes), entry.path)
            stream.seek(entry.size_bytes, SEEK_CUR)
            _expect(archive.file, stream, _padding(entry.size_bytes), entry.path)
        _expect(archive.file, stream, _ending(stream.tell()), "the end")


def _blocks(stream: BufferedReader, size_bytes: int) -> Iterator[bytes]:
    while size_bytes and (block := stream.read(min(COPY_BYTES, size_bytes))):
        size_bytes -= len(block)
        yield block


def _expect(file: Path, stream: BufferedReader, expected: bytes, what: str) -> None:
    if stream.read(len(expected)) != expected:
        raise _bad(file, f"there is something else where '{what}' belongs")


def _bad(file: Path, reason: str) -> BadArtifact:
    return BadArtifact(f"{file} is refused: {reason}. Export the version again, and copy the file whole.")
