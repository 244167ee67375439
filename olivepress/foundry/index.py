"""The local catalog's index of a Foundry Local cache: entries are added and removed beside those of others.

<cache>/foundry.local.modelinfo.json       the local catalog of Foundry Local 2.2 (what `register_model` writes)
<cache>/foundry.local.modelinfo.lock       the runtime's own lock on it
"""

import contextlib
import errno
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from olivepress.errors import BadArtifact, DiskFull
from olivepress.file_lock import exclusive
from olivepress.foundry import inference_model as foundry

INDEX_FILE = "foundry.local.modelinfo.json"
INDEX_LOCK_FILE = "foundry.local.modelinfo.lock"
INDEX_VERSION = 2
TASK = "chat-completion"
INDEX_WAIT_S = 15.0
NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def register(cache_dir: Path, model_id: str, directory: Path) -> None:
    """Add the version to the index of the local catalog, or point its entry to this directory.

    Raises:
        BadArtifact: the index is not one that can be added to, or has this id for another directory.
        ServiceUnavailable: another process holds the index.
        DiskFull: no room for it.
    """
    index_file = cache_dir / INDEX_FILE
    with exclusive(cache_dir / INDEX_LOCK_FILE, wait_s=INDEX_WAIT_S, what="Foundry Local's list of models"):
        index = read_index(index_file)
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


def unregister(cache_dir: Path, model_id: str, directory: Path) -> bool:
    """Remove the version's entry from the index; whether there was one for this directory, or one that leads nowhere.

    Raises:
        BadArtifact, ServiceUnavailable, DiskFull: as `register`.
    """
    index_file = cache_dir / INDEX_FILE
    if not index_file.exists():
        return False
    with exclusive(cache_dir / INDEX_LOCK_FILE, wait_s=INDEX_WAIT_S, what="Foundry Local's list of models"):
        index = read_index(index_file)
        models: list[dict[str, Any]] = index["models"]
        kept = [
            entry
            for entry in models
            if entry["model_info"]["id"] != model_id or not _is_ours(entry["model_path"], directory)
        ]
        if len(kept) < len(models):
            _write_index(index_file, index | {"models": kept})
    return len(kept) < len(models)


def is_registered(cache_dir: Path, model_id: str, directory: Path) -> bool:
    """Whether the index lists the version, and in this directory. Raises: BadArtifact (the index is broken)."""
    entries = read_index(cache_dir / INDEX_FILE)["models"]
    return any(entry["model_info"]["id"] == model_id and Path(entry["model_path"]) == directory for entry in entries)


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


def read_index(path: Path) -> dict[str, Any]:
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
