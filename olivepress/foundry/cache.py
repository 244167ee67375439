"""Puts model versions into a cache directory of Foundry Local: older runtimes find them there, newer ones list them.

    <cache>/olivepress/<name>-<number>/        the model version; older runtimes find it by its inference_model.json
    <cache>/olivepress/.<name>-<number>.partial/   a download that was interrupted; the next install goes on with it
    <cache>/foundry.local.modelinfo.json       the local catalog of Foundry Local 2.2: see foundry_index.py

The client does this without the SDK: on a colleague's machine nothing but Foundry Local itself needs to be installed.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from olivepress.errors import BadArtifact, DiskFull, NotAllowed, ServiceUnavailable
from olivepress.file_lock import exclusive
from olivepress.foundry import index as foundry_index
from olivepress.foundry import inference_model as foundry

PUBLISHER = "olivepress"
INSTALL_WAIT_S = 5.0
READ_BYTES = 1 << 20
NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
IN_USE = (errno.EACCES, errno.EBUSY, errno.EPERM)

FileWriter = Callable[[Path], None]
"""Writes all files of a model version, SHA256SUMS among them, into the empty directory that it is given."""
Registrar = Callable[[Path, str, Path], None]
"""Given a cache, the id of a version, and its directory."""


@dataclass(frozen=True)
class Installed:
    """A model version in a cache; `was_there` when it was complete before and no file was written."""

    model_id: str
    directory: Path
    was_there: bool


def install_into_cache(
    source: Path | FileWriter,
    cache_dir: Path,
    name: str,
    number: int,
    *,
    sums: str | None = None,
    unlisted: Mapping[str, str] = MappingProxyType({}),
    register: Registrar = foundry_index.register,
) -> Installed:
    """Install a published model version and register it in the local catalog beside the entries of others.

    The files are written into a sibling directory, checked against their SHA256SUMS and renamed into place. Installing
    again changes nothing where every file is whole, and replaces the directory where one is not.

    Args:
        source: the directory of the model version, or what writes it (a download).
        sums: the text of SHA256SUMS as published, if known before: an installed version that differs is replaced.
        unlisted: path → SHA-256 of files that SHA256SUMS does not list: the signed evidence.
        register: adds the version to the local catalog, or sees that it is there.

    Raises:
        BadManifest: the name or number is not legal in Foundry Local.
        BadArtifact: a file is missing or damaged, or the catalog's index is not one that can be added to.
        ServiceUnavailable: another process holds the index or installs the same version.
        DiskFull: no room in the cache.
        NotAllowed: the cache directory cannot be written to.
    """
    model_id = foundry.foundry_name(name, number)
    cache_dir = cache_dir.expanduser().resolve()
    target = cache_dir / PUBLISHER / f"{name}-{number}"
    _make_folder(target.parent)
    # Before the files: a broken index is found before anything is downloaded.
    foundry_index.read_index(cache_dir / foundry_index.INDEX_FILE)
    if isinstance(source, Path):
        sums = _read_sums_text(source)
    with exclusive(target.parent / f".{target.name}.lock", wait_s=INSTALL_WAIT_S, what=f"the install of {model_id}"):
        _sweep(target)
        was_there = _is_whole(target, model_id, sums) and _has(target, unlisted)
        if not was_there:
            _refuse_second_copy(cache_dir, target, model_id)
            _write_version(source, target, model_id)
    register(cache_dir, model_id, target)
    return Installed(model_id, target, was_there)


@dataclass(frozen=True)
class Uninstalled:
    """A version that is no longer in a cache; `was_there` when there was anything of it."""

    model_id: str
    directory: Path
    was_there: bool


def installed_numbers(cache_dir: Path, name: str) -> list[int]:
    """The numbers of this model's versions that are installed, rising."""
    shelf = cache_dir.expanduser().resolve() / PUBLISHER
    numbers = []
    for directory in shelf.iterdir() if shelf.is_dir() else ():
        number = directory.name.removeprefix(f"{name}-")
        if directory.name == f"{name}-{number}" and foundry.MODEL_ID.fullmatch(f"{name}:{number}"):
            numbers.append(int(number))
    return sorted(numbers)


def uninstall_from_cache(cache_dir: Path, name: str, number: int) -> Uninstalled:
    """Remove a version that olivepress installed: its entry first, so that nobody loads what is going, then its files.

    What others installed is left alone. Unfinished downloads of the version go, too.

    Raises:
        BadManifest: the name or number is not legal in Foundry Local.
        BadArtifact: the catalog's index is broken, or the directory holds another model.
        ServiceUnavailable: another process holds the index, or has the model loaded.
    """
    model_id = foundry.foundry_name(name, number)
    cache_dir = cache_dir.expanduser().resolve()
    target = cache_dir / PUBLISHER / f"{name}-{number}"
    if not target.parent.is_dir():
        return Uninstalled(model_id, target, False)
    with exclusive(target.parent / f".{target.name}.lock", wait_s=INSTALL_WAIT_S, what=f"the install of {model_id}"):
        was_listed = foundry_index.unregister(cache_dir, model_id, target)
        was_there = target.is_dir()
        if was_there:
            _move_aside(target, model_id)
        _sweep(target)
        shutil.rmtree(partial_of(target), ignore_errors=True)
    return Uninstalled(model_id, target, was_listed or was_there)


def _move_aside(target: Path, model_id: str) -> None:
    try:
        (target / foundry.UNFINISHED_FILE).touch()
        target.rename(target.with_name(f".{target.name}.old-{os.getpid()}"))
    except OSError as error:
        if error.errno in IN_USE:
            raise ServiceUnavailable(
                f"{target} cannot be removed: {error.strerror}; unload {model_id} in Foundry Local and try again"
            ) from error
        raise


def partial_of(target: Path) -> Path:
    """Where the unfinished download of an installed version lies."""
    return target.with_name(f".{target.name}.partial")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotAllowed(f"{folder} cannot be made: {error.strerror}; choose a cache directory of your own") from error
    if not os.access(folder, os.W_OK):
        raise NotAllowed(f"{folder} cannot be written to; choose a cache directory of your own")


def _read_sums_text(directory: Path) -> str:
    try:
        return (directory / foundry.SUMS_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise BadArtifact(
            f"{directory} holds no {foundry.SUMS_FILE}; only a published version can be installed"
        ) from error


def _is_whole(directory: Path, model_id: str, sums: str | None) -> bool:
    """Whether the directory holds exactly this version and every file of it is as its checksum says."""
    if not directory.is_dir() or (directory / foundry.UNFINISHED_FILE).exists():
        return False
    try:
        if sums is not None and _read_sums_text(directory) != sums:
            return False
        _check_version(directory, model_id)
    except (BadArtifact, OSError):
        return False
    return True


def _has(directory: Path, files: Mapping[str, str]) -> bool:
    return all((directory / path).is_file() and _sha256(directory / path) == files[path] for path in files)


def _refuse_second_copy(cache_dir: Path, target: Path, model_id: str) -> None:
    """Refuse what would hide a model version, or be hidden by one, in the eyes of older runtimes."""
    for declared, directories in foundry.scan_rules(cache_dir).directories.items():
        others = [directory for directory in directories if directory != target]
        if declared == model_id and others:
            raise BadArtifact(
                f"{others[0]} declares itself to be {model_id} too, so Foundry Local would show only one of them; "
                "remove that folder"
            )
        # On Windows and macOS "A-1" and "a-1" are one folder.
        if declared != model_id and declared.lower() == model_id.lower() and target in directories:
            raise BadArtifact(f"{target} already holds {declared}; remove that folder to install {model_id}")


def _sweep(target: Path) -> None:
    """Remove what an install that was killed left behind; the lock is held, so nobody works there."""
    for pattern in (f".{target.name}.new-*", f".{target.name}.old-*"):
        for left in target.parent.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def _write_version(source: Path | FileWriter, target: Path, model_id: str) -> None:
    fresh = target.with_name(f".{target.name}.new-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        # Until this file is gone, a runtime that scans at this moment does not see a second copy of the version.
        (fresh / foundry.UNFINISHED_FILE).touch()
        if isinstance(source, Path):
            shutil.copytree(source, fresh, dirs_exist_ok=True, copy_function=shutil.copyfile)
        else:
            source(fresh)
        _check_version(fresh, model_id)
        _replace(target, fresh)
        (target / foundry.UNFINISHED_FILE).unlink()
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DiskFull(f"no room is left in {target.parent} for {model_id}; free some disk space") from error
        if error.errno in IN_USE:
            raise ServiceUnavailable(
                f"{target} cannot be replaced: {error.strerror}; unload {model_id} in Foundry Local and try again"
            ) from error
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _replace(target: Path, fresh: Path) -> None:
    """Rename `fresh` to `target`; what was there is first moved aside, for a directory cannot be replaced in one go."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    if target.exists():
        (target / foundry.UNFINISHED_FILE).touch()
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _check_version(directory: Path, model_id: str) -> None:
    """Raise BadArtifact unless every file is there, is as its checksum says, and the version is the one expected."""
    sums = foundry.read_sums(_read_sums_text(directory))
    for needed in (foundry.GENAI_CONFIG_FILE, foundry.INFERENCE_MODEL_FILE):
        if needed not in sums:
            raise BadArtifact(f"{model_id} holds no {needed}; publish the model again")
    for path, sha256 in sums.items():
        file = directory / path
        if not file.is_file() or _sha256(file) != sha256:
            raise BadArtifact(f"{path} of {model_id} is missing or damaged; get this version again")
    declared = foundry.declared_id(directory)
    if declared != model_id:
        raise BadArtifact(f"the files are those of {declared}, not of {model_id}; get this version again")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
