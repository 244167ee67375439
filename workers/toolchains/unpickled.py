"""Writes the safetensors checkpoint that a `pytorch_model.bin` holds, where an administrator allows to open one.

torch opens it with `weights_only=True`: anything but plain tensors and containers in it is an error, not code to run.
The process is the step's own, without network, and ends with it.
"""

import json
import pickle
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from olivepress.checkpoints.files import (
    PICKLE,
    PICKLE_INDEX,
    WEIGHTS,
    WEIGHTS_INDEX,
    is_weights,
    read_json,
    relevant_files,
)
from olivepress.errors import BadCheckpoint, UnsafeCheckpoint
from workers.toolchains.failures import is_disk_full

PLAIN_NAME = re.compile(r"[^/\\\0]+\.bin")
SAVE_SAFE = "save it as safetensors with model.save_pretrained(...)"


def has_only_pickles(directory: Path) -> bool:
    """Whether a full checkpoint's weights are in `pytorch_model.bin`, alone or in parts with their index."""
    if (directory / WEIGHTS).exists() or (directory / WEIGHTS_INDEX).exists():
        return False
    return (directory / PICKLE).is_file() or (directory / PICKLE_INDEX).is_file()


def unpickled(directory: Path, into: Path) -> Path:
    """Write the checkpoint in `directory` with its weights as safetensors to `into`, and return that.

    Raises:
        UnsafeCheckpoint: a file holds more than tensors.
        BadCheckpoint: a file is missing or damaged.
    """
    into.mkdir(parents=True)
    parts = _parts(directory)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        tensors = _tensors(directory / part)
        name = WEIGHTS if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file(tensors, into / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    if len(parts) > 1:
        (into / WEIGHTS_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for file in relevant_files(directory):
        if not is_weights(file.name):
            target = into / file.relative_to(directory)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    return into


def _parts(directory: Path) -> list[str]:
    if not (directory / PICKLE_INDEX).is_file():
        return [PICKLE]
    weight_map = read_json(directory / PICKLE_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(f"{directory / PICKLE_INDEX} has no 'weight_map'; save the model again")
    for part in weight_map.values():
        if not isinstance(part, str) or not PLAIN_NAME.fullmatch(part):
            raise BadCheckpoint(f"{directory / PICKLE_INDEX} names '{part}', which is no file beside it; {SAVE_SAFE}")
        if not (directory / part).is_file():
            raise BadCheckpoint(f"{directory} has no {part}, which {PICKLE_INDEX} names; copy it there")
    return sorted(set(weight_map.values()))


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        said = " ".join(str(error).split())[:200]
        raise UnsafeCheckpoint(
            f"{path} holds more than tensors, and that is never run ({said}); {SAVE_SAFE}"
        ) from error
    except Exception as error:
        if is_disk_full(error) or isinstance(error, MemoryError):
            raise
        # The edge to torch's reader: over a damaged file it raises nearly every type.
        raise BadCheckpoint(f"{path} is damaged ({type(error).__name__}); copy it again, or {SAVE_SAFE}") from error
    if not isinstance(held, dict) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise BadCheckpoint(f"{path} holds no table of tensors; {SAVE_SAFE}")
    # Tied tensors share their memory, which safetensors does not.
    return {name: tensor.detach().clone().contiguous() for name, tensor in held.items()}
