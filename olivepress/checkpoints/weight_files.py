"""Which files hold the weights of a full checkpoint: one safetensors file, or several with an index."""

import re
from pathlib import Path
from typing import NoReturn

from olivepress.checkpoints.files import WEIGHTS, WEIGHTS_INDEX, read_json
from olivepress.checkpoints.safetensors_header import SafetensorsFile, read_safetensors_header
from olivepress.errors import BadCheckpoint, UnsafeCheckpoint

PLAIN_NAME = re.compile(r"[^/\\\0]+\.safetensors")
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
# Pickles that a trainer leaves beside the weights.
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "trainer_state")
SUBMIT_ORIGINAL = "submit the Hugging Face checkpoint that it was made from"
OTHER_FORMATS = {
    # One of a whole model in a name of small letters is read (gguf_folder.py): this is an adapter, or a .GGUF.
    ".gguf": f"GGUF, which is read of whole models in one *.gguf; rename it, or {SUBMIT_ORIGINAL}",
    ".onnx": f"ONNX, so it was converted already; {SUBMIT_ORIGINAL}",
    ".h5": "TensorFlow; convert it to safetensors with transformers (from_tf=True)",
    ".msgpack": "Flax; convert it to safetensors with transformers (from_flax=True)",
    ".npz": "NumPy; convert it to safetensors",
    ".nemo": "NeMo; convert it to safetensors with NeMo's exporter for Hugging Face",
}


def find_weights(directory: Path) -> tuple[SafetensorsFile, ...]:
    """The headers of the files that hold the model's weights, in the order of their names.

    Raises:
        BadCheckpoint: there are none, or one is missing, damaged or at odds with the index.
        UnsafeCheckpoint: there are only pickles.
    """
    has_single, has_index = (directory / WEIGHTS).is_file(), (directory / WEIGHTS_INDEX).is_file()
    if not has_index:
        if not has_single:
            refuse_without_weights(directory, WEIGHTS)
        return (read_safetensors_header(directory / WEIGHTS),)
    weight_map = _weight_map(directory / WEIGHTS_INDEX)
    shards = sorted(set(weight_map.values()))
    if has_single and shards != [WEIGHTS]:
        raise BadCheckpoint(
            f"{directory} holds two sets of weights, {WEIGHTS} and the files that {WEIGHTS_INDEX} names; "
            "keep the one that is meant"
        )
    for shard in shards:
        if not (directory / shard).is_file():
            raise BadCheckpoint(f"{directory} has no {shard}, which {WEIGHTS_INDEX} names; copy it there")
    files = tuple(read_safetensors_header(directory / shard) for shard in shards)
    _check_index(directory, weight_map, files)
    return files


def refuse_without_weights(directory: Path, wanted: str) -> NoReturn:
    """Say why there are no weights to read: a pickle, another format, another name, or nothing.

    Raises:
        UnsafeCheckpoint: there are pickles.
        BadCheckpoint: else.
    """
    files = sorted(path for path in directory.iterdir() if path.is_file())
    pickles = [path.name for path in files if path.suffix in PICKLE_SUFFIXES and not path.name.startswith(NO_WEIGHTS)]
    if pickles:
        raise UnsafeCheckpoint(
            f"{directory} has its weights in a pickle ({pickles[0]}), which can run any code when it is opened; load "
            "it where you trust it and save it as safetensors with model.save_pretrained(...), or let an administrator "
            "allow it with OLIVEPRESS_ALLOW_PICKLE=true (then only plain tensors are read from it)"
        )
    if other := other_format(directory):
        raise BadCheckpoint(f"{directory} {other}")
    misnamed = [path.name for path in files if path.suffix == ".safetensors"]
    if misnamed:
        index = f", or add {WEIGHTS_INDEX}" if wanted == WEIGHTS else ""
        raise BadCheckpoint(f"{directory} has no {wanted} but {', '.join(misnamed[:3])}; rename the file{index}")
    raise BadCheckpoint(f"{directory} has a config but no weights ({wanted}); copy or save them there")


def other_format(directory: Path) -> str | None:
    """In what other format a folder has its weights and what to do with it, as the rest of a sentence."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    if other := next((path for path in files if path.suffix.lower() in OTHER_FORMATS), None):
        return f"has its weights in another format ({other.name}): {OTHER_FORMATS[other.suffix.lower()]}"
    if (directory / "params.json").is_file() and any(directory.glob("consolidated*")):
        return (
            "has its weights in their authors' own layout (params.json, consolidated...); convert it with its family's "
            "script in transformers (convert_..._weights_to_hf.py)"
        )
    return None


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(f"{path} has no 'weight_map'; save the model again")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not PLAIN_NAME.fullmatch(shard):
            raise BadCheckpoint(f"{path} names '{shard}', which is no safetensors file beside it; save the model again")
    return weight_map


def _check_index(directory: Path, weight_map: dict[str, str], files: tuple[SafetensorsFile, ...]) -> None:
    held = {file.path.name: {tensor.name for tensor in file.tensors} for file in files}
    absent = sorted(name for name, shard in weight_map.items() if name not in held[shard])
    if absent:
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise BadCheckpoint(
            f"{directory / WEIGHTS_INDEX} says that '{absent[0]}'{more} is in {weight_map[absent[0]]}, and it is not; "
            "copy that file again, or save the model again"
        )
