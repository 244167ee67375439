"""Checksums that came with a checkpoint: SHA256SUMS, *.sha256 files and what the Hugging Face hub client left behind.

No format of a checkpoint carries a checksum of its own, so a flipped bit in a weight is certain to be found only where
one of these is there.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from olivepress.checkpoints.files import HashedFile, is_relevant, unreadable
from olivepress.errors import BadCheckpoint

SUMS_FILE = "SHA256SUMS"
SUFFIX = ".sha256"
HEX = r"(?P<sha256>[0-9a-fA-F]{64})"
# coreutils "<hash>  name" (a star before the name means binary), BSD "SHA256 (name) = <hash>", or a hash alone.
LINE = re.compile(
    rf"\\?{HEX}(?:[ \t]+\*?(?P<name>.+))?|SHA256 \((?P<bsd_name>.+)\) = (?P<bsd_sha256>[0-9a-fA-F]{{64}})"
)
HUB_BLOBS = "blobs"
HUB_RECORDS = PurePosixPath(".cache/huggingface/download")


def expected_checksums(directory: Path, names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """What is known of the files' SHA-256.

    Args:
        names: the files of interest, relative to the directory.

    Returns:
        Name to (SHA-256 in lower-case hex, where it says so); names without a checksum are left out.

    Raises:
        BadCheckpoint: a checksum file cannot be understood.
    """
    known = {}
    for name in names:
        for found in (_hub_blob(directory / name), _hub_record(directory, name)):
            if found:
                known[name] = found
    # Written on purpose by somebody, so these come last and win.
    for sidecar in sorted([*directory.glob(f"*{SUFFIX}"), *directory.glob(SUMS_FILE)]):
        own_name = sidecar.name.removesuffix(SUFFIX) if sidecar.suffix == SUFFIX else None
        known |= {name: (sha256, sidecar.name) for name, sha256 in _read_sidecar(sidecar, own_name).items()}
    return known


def check_listed(directory: Path, expected: dict[str, tuple[str, str]]) -> None:
    """See that every relevant file that a checksum file lists is there.

    Raises:
        BadCheckpoint: one is not.
    """
    for name, (_, source) in expected.items():
        if is_relevant(name) and not (directory / name).is_file():
            raise BadCheckpoint(f"{directory} has no {name}, which {source} lists; copy it there")


def check_sums(directory: Path, files: Iterable[HashedFile], expected: dict[str, tuple[str, str]]) -> None:
    """Compare what was read with what was expected.

    Raises:
        BadCheckpoint: a file is not what its checksum says.
    """
    for file in files:
        sha256, source = expected.get(file.path, (file.sha256, ""))
        if file.sha256 != sha256:
            raise BadCheckpoint(
                f"{directory / file.path} is damaged or was changed: its SHA-256 is {file.sha256[:12]}…, {source} says "
                f"{sha256[:12]}…; copy it again, or write the checksum anew if the change was meant"
            )


def _read_sidecar(sidecar: Path, own_name: str | None) -> dict[str, str]:
    try:
        lines = sidecar.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise unreadable(sidecar, error) from None
    except UnicodeDecodeError:
        raise BadCheckpoint(f"{sidecar} is no list of checksums; write it with sha256sum, or remove it") from None
    sums = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.rstrip())
        name = (match["name"] or match["bsd_name"] or own_name) if match else None
        if match is None or name is None:
            raise BadCheckpoint(f"{sidecar} line {number} is no checksum; write it with sha256sum, or remove it")
        sums[name.removeprefix("./")] = (match["sha256"] or match["bsd_sha256"]).lower()
    return sums


def _hub_blob(file: Path) -> tuple[str, str] | None:
    """The hub's cache stores a large file under its SHA-256 and links to it."""
    real = Path(os.path.realpath(file))
    if real.parent.name == HUB_BLOBS and re.fullmatch(HEX, real.name):
        return real.name.lower(), "its name in the hub's cache"
    return None


def _hub_record(directory: Path, name: str) -> tuple[str, str] | None:
    """`hf download --local-dir` leaves commit, etag (the SHA-256 of a large file) and time for each file."""
    record = directory / HUB_RECORDS / f"{name}.metadata"
    if record.is_symlink() or not record.is_file():
        return None
    try:
        _, etag, written_at = record.read_text(encoding="utf-8").split()
        # The client's own rule: a file changed after its download is somebody's own, and the record does not bind.
        is_current = (directory / name).stat().st_mtime - 1 <= float(written_at)
    except (OSError, ValueError):
        return None
    return (etag.lower(), f"its download record {record}") if is_current and re.fullmatch(HEX, etag) else None
