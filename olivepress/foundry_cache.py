"""Puts model versions into a cache directory of Foundry Local: older runtimes find them there, newer ones list them.

    <cache>/olivepress/<name>-<number>/        the model version; older runtimes find it by its inference_model.json
    <cache>/foundry.local.modelinfo.json       the local catalog of Foundry Local 2.2 (what `register_model` writes)
    <cache>/foundry.local.modelinfo.lock       the runtime's own lock on it

The client does this without the SDK: on a colleague's machine nothing but Foundry Local itself needs to be installed.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from olivepress import foundry
from olivepress.errors import BadArtifact, DiskFull, NotAllowed, ServiceUnavailable
from olivepress.file_lock import exclusive

PUBLISHER = "olivepress"
INDEX_FILE = "foundry.local.modelinfo.json"
INDEX_LOCK_FILE = "foundry.local.modelinfo.lock"
INDEX_VERSION = 2
TASK = "chat-completion"
INDEX_WAIT_S = 15.0
INSTALL_WAIT_S = 5.0
READ_BYTES = 1 << 20
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
IN_USE = (errno.EACCES, errno.EBUSY, errno.EPERM)

FileWriter = Callable[[Path], None]
"""Writes all files of a model version, SHA256SUMS among them, into the empty directory that it is given."""


@dataclass(frozen=True)
class Installed:
    """A model version in a cache; `was_there` when it was complete before and no file was written."""

    model_id: str
    directory: Path
    was_there: bool


def install_into_cache(
    source: Path | FileWriter, cache_dir: Path, name: str, number: int, *, sums: str | None = None
) -> Installed:
    """Install a published model version and register it in the local catalog beside the entries of others.

    The files are written into a sibling directory, checked against their SHA256SUMS and renamed into place. Installing
    again changes nothing where every file is whole, and replaces the directory where one is not.

    Args:
        source: the directory of the model version, or what writes it (a download).
        sums: the text of SHA256SUMS as published, if known before: an installed version that differs is replaced.

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
    _read_index(cache_dir / INDEX_FILE)
    if isinstance(source, Path):
        sums = _read_sums_text(source)
    with exclusive(target.parent / f".{target.name}.lock", wait_s=INSTALL_WAIT_S, what=f"the install of {model_id}"):
        _sweep(target)
        was_there = _is_whole(target, model_id, sums)
        if not was_there:
            _refuse_second_copy(cache_dir, target, model_id)
            _write_version(source, target, model_id)
    _register(cache_dir, model_id, target)
    return Installed(model_id, target, was_there)


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


def _register(cache_dir: Path, model_id: str, directory: Path) -> None:
    """Add the version to the index of the local catalog, or point its entry to this directory."""
    index_file = cache_dir / INDEX_FILE
    with exclusive(cache_dir / INDEX_LOCK_FILE, wait_s=INDEX_WAIT_S, what="Foundry Local's list of models"):
        index = _read_index(index_file)
        models: list[dict[str, Any]] = index["models"]
        at = next((place for place, entry in enumerate(models) if entry["model_info"]["id"] == model_id), None)
        if at is None:
            models.append(catalog_entry(model_id, directory, created_at=int(time.time())))
        elif _is_ours(models[at]["model_path"], directory):
            if models[at]["model_path"] == str(directory):
                return
            models[at] = catalog_entry(model_id, directory, created_at=int(time.time()))
        else:
            raise BadArtifact(
                f"{model_id} is registered in {index_file} for {models[at]['model_path']}; unregister that one, or "
                "choose another cache"
            )
        _write_index(index_file, index)


def _is_ours(model_path: str, directory: Path) -> bool:
    """Whether an entry for the same version is this one, or leads nowhere (the cache was moved)."""
    return Path(model_path) == directory or not (Path(model_path) / foundry.GENAI_CONFIG_FILE).exists()


def catalog_entry(model_id: str, directory: Path, *, created_at: int) -> dict[str, Any]:
    """What `register_model` of foundry-local-sdk 2.2.1 writes for a chat model; `created_at` in seconds since 1970.

    The path must be absolute: the runtime takes a relative one from the directory it was started in.

    Raises:
        BadArtifact: genai_config.json has no context length.
    """
    match = foundry.MODEL_ID.fullmatch(model_id)
    if match is None:
        raise BadArtifact(f"'{model_id}' is no name and version of a model")
    name = match["name"]
    return {
        "model_info": {
            "alias": name,
            "createdAt": created_at,
            "displayName": name,
            "id": model_id,
            "intProperties": {"context_length": _context_length(directory), "created_at_unix": created_at},
            "modelType": "ONNX",
            "name": name,
            "providerType": "LocalRegistration",
            "publisher": "local",
            "stringProperties": {
                "creation_time": datetime.fromtimestamp(created_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "display_name": name,
                "entity_type": "Model",
                "input_modalities": "text",
                "model_provider": "LocalRegistration",
                "output_modalities": "text",
                "publisher": "local",
                "task": TASK,
                "type": "ONNX",
            },
            "task": TASK,
            "uri": "",
            "version": int(match["number"]),
        },
        "model_path": str(directory),
    }


def _context_length(directory: Path) -> int:
    try:
        config = json.loads((directory / foundry.GENAI_CONFIG_FILE).read_text(encoding="utf-8"))
        return int(config["model"]["context_length"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadArtifact(f"{foundry.GENAI_CONFIG_FILE} of {directory} names no context length") from error


def _read_index(path: Path) -> dict[str, Any]:
    """The local catalog's index, or a new one where there is none.

    Raises:
        BadArtifact: the file is not an index of the version that is known here; adding to it could break it further.
    """
    if not path.exists():
        return {"catalog_name": "local", "models": [], "version": INDEX_VERSION}
    advice = "Foundry Local cannot list models from it either; repair it or move it away and try again"
    try:
        index = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise BadArtifact(f"{path} is not valid JSON; {advice}") from error
    if not isinstance(index, dict) or not isinstance(index.get("models"), list):
        raise BadArtifact(f"{path} holds no list of models; {advice}")
    if index.get("version") != INDEX_VERSION:
        raise BadArtifact(
            f"{path} has layout version {index.get('version')} where {INDEX_VERSION} is known; it belongs to another "
            "release of Foundry Local, so register the model with that one's own tools"
        )
    seen = set()
    for entry in index["models"]:
        info = entry.get("model_info") if isinstance(entry, dict) else None
        model_id = info.get("id") if isinstance(info, dict) else None
        if not isinstance(model_id, str) or not isinstance(entry.get("model_path"), str) or model_id in seen:
            raise BadArtifact(f"{path} has an entry without an id, without a path, or twice; {advice}")
        seen.add(model_id)
    return index


def _write_index(path: Path, index: dict[str, Any]) -> None:
    """Replace the index in one go, in the runtime's own spelling (sorted keys, two spaces, no last line break)."""
    fresh = path.with_name(f"{path.name}.olivepress-{os.getpid()}")
    try:
        with fresh.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False))
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DiskFull(f"no room is left for {path}; free some disk space") from error
        raise
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()
