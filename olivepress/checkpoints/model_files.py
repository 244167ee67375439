"""The files of an ONNX model directory that was made elsewhere: where it is, which of them count, what names its state.

Such a directory is what the model builder of onnxruntime-genai writes, an Olive workflow's output folder, an entry of a
Foundry Local cache, a pulled version, or an exported one as a single file.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from olivepress.checkpoints.files import CHAT_TEMPLATE, SETTLED_AFTER_S, TOKENIZER_CONFIG
from olivepress.errors import BadCheckpoint
from olivepress.foundry.inference_model import GENAI_CONFIG_FILE, INFERENCE_MODEL_FILE
from olivepress.jobs import digest_of

# What a tokenizer may consist of beside tokenizer.json and its settings. All of it goes into a package.
TOKENIZER_FILES = (
    "tokenizer.json", TOKENIZER_CONFIG, "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", CHAT_TEMPLATE,
)  # fmt: skip
DEPTH_AT_MOST = 4
ENTRIES_AT_MOST = 10_000
CONFIG_BYTES_AT_MOST = 4 * 2**20
WHAT_NOW = "get the directory again from where it was made"
CONTEXT_AT_MOST = 2**31 - 1
FAMILY = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")
# Keys with which a config makes the engine load native code.
CODE_KEYS = frozenset({"custom_ops_library", "ep_library_path", "library_path", "backend_path"})
# Keys with which a config makes the engine write files while it runs.
WRITING_KEYS = ("enable_profiling", "ep_context_enable", "ep_context_file_path")
FURTHER_MODELS = ("encoder", "vision", "speech", "embedding")


def find_model_directory(directory: Path) -> Path:
    """The one directory, this or one below it, that holds a model; links are not followed.

    Raises:
        BadCheckpoint: there is none, or more than one.
    """
    found = sorted(path.parent for path in _walk(directory) if path.name == GENAI_CONFIG_FILE)
    if not found:
        raise BadCheckpoint(
            f"'{directory}' has no {GENAI_CONFIG_FILE}, so it is no model of onnxruntime-genai; give the directory "
            "that holds that file and the .onnx, or if it is a checkpoint: olivepress submit DIR"
        )
    if len(found) > 1 and found[0] != directory:
        names = ", ".join(str(path.relative_to(directory)) for path in found[:5])
        raise BadCheckpoint(f"'{directory}' holds {len(found)} models ({names}); import them one by one")
    return found[0]


def model_identity(path: Path, *, settled: bool = False) -> str | None:
    """What names the state of a model directory, or of an archive, without reading it: by stat alone.

    Args:
        settled: as `checkpoint_files.file_identity` has it.

    Returns:
        The identity (hex); None where the files cannot be listed, or one is too new.
    """
    places: list[list[Any]] = [[os.path.realpath(path)]]
    newest_ns = 0
    try:
        for file in [path] if path.is_file() else sorted(_walk(path)):
            state = file.stat()
            newest_ns = max(newest_ns, state.st_mtime_ns, state.st_ctime_ns)
            times = [state.st_mtime_ns, state.st_ctime_ns]
            places.append([str(file), state.st_size, *times, state.st_ino, state.st_dev])
    except (OSError, ValueError, BadCheckpoint):
        return None
    if settled and time.time_ns() - newest_ns < SETTLED_AFTER_S * 1e9:
        return None
    return digest_of(places)


def parse_config(content: bytes) -> dict[str, Any]:
    """The content of a genai_config.json, if an engine may be given it.

    Raises:
        BadCheckpoint: it is no such file; it describes more than one text decoder; it names files outside its
            directory, or native code.
    """
    try:
        config = json.loads(content.decode("utf-8-sig"), parse_constant=_refuse_constant)
        model = config["model"]
        decoder, context_length = model["decoder"], model["context_length"]
        file = decoder.get("filename", "model.onnx")
        search = config.get("search") or {}
        is_sound = isinstance(search, dict) and isinstance(file, str) and bool(FAMILY.fullmatch(model["type"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_sound = False
    if not is_sound:
        raise BadCheckpoint(f"{GENAI_CONFIG_FILE} does not describe a text model with a decoder; {WHAT_NOW}")
    if type(context_length) is not int or not 1 <= context_length <= CONTEXT_AT_MOST:
        raise BadCheckpoint(f"{GENAI_CONFIG_FILE} has no context_length that a model can have; {WHAT_NOW}")
    if more := [name for name in FURTHER_MODELS if name in model] + ["pipeline"] * ("pipeline" in decoder):
        raise BadCheckpoint(
            f"{GENAI_CONFIG_FILE} describes a model of several parts ({', '.join(more)}), and only text models with "
            "one decoder can be imported"
        )
    for place, value in _leaves(config):
        if value and place.rpartition(".")[2] in WRITING_KEYS:
            raise BadCheckpoint(f"{GENAI_CONFIG_FILE} makes the engine write files ({place}); take it out")
        if place.rpartition(".")[2] in CODE_KEYS:
            raise BadCheckpoint(f"{GENAI_CONFIG_FILE} loads native code ({place}), which is never run; take it out")
        if isinstance(value, str) and _leads_out(value):
            raise BadCheckpoint(
                f"{GENAI_CONFIG_FILE} names '{value[:80]}' ({place}), which is outside the model's directory; "
                f"{WHAT_NOW}"
            )
    checked: dict[str, Any] = config
    return checked


def inside(name: str) -> PurePosixPath:
    """A file's name as a graph or a config writes it, if it stays in the model's directory.

    Raises:
        BadCheckpoint: it does not, or is no name for a file on every system.
    """
    path = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or _leads_out(name) or str(path) == ".":
        raise BadCheckpoint(f"the model names a file '{name[:80]}', which is not inside its directory; {WHAT_NOW}")
    return path


def settings_of(search: Mapping[str, Any], context_length: int) -> dict[str, float]:
    """A config's settings of generation as a recipe's Foundry settings; what is absent has the engine's default."""

    def number(name: str, default: float) -> float:
        value = search.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > CONTEXT_AT_MOST:
            return default
        return value

    samples = search.get("do_sample") is True
    return {
        "max_length": max(1, int(number("max_length", context_length))),
        "temperature": number("temperature", 1.0) if samples else 0.0,
        "top_p": number("top_p", 1.0),
        "repetition_penalty": number("repetition_penalty", 1.0),
    }


def declared_name(directory: Path) -> str | None:
    """What inference_model.json beside a model calls it, such as support-en-int4:3; None where it says nothing."""
    path = directory / INFERENCE_MODEL_FILE
    try:
        if not path.is_file() or path.stat().st_size > CONFIG_BYTES_AT_MOST:
            return None
        name = json.loads(path.read_text(encoding="utf-8-sig"))["Name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) and 0 < len(name) <= 200 and name.isprintable() else None


def _walk(directory: Path) -> Iterator[Path]:
    """The files below a directory, to a depth, without hidden ones and without following links to directories.

    Raises:
        BadCheckpoint: there are more than a model directory has.
    """
    count = 0
    for root, folders, files in os.walk(directory, onerror=_raise):
        depth = len(Path(root).relative_to(directory).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < DEPTH_AT_MOST else []
        for name in files:
            if (count := count + 1) > ENTRIES_AT_MOST:
                raise BadCheckpoint(
                    f"'{directory}' holds more than {ENTRIES_AT_MOST:,} files, which no model has; give the model's own"
                )
            yield Path(root, name)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _raise(error: OSError) -> None:
    raise error


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a JSON value that holds no other, and its dotted place."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{place}.{number}" if place else str(number))
    else:
        yield place, value


def _leads_out(text: str) -> bool:
    parts = text.replace("\\", "/").split("/")
    return ".." in parts or PurePosixPath(text).is_absolute() or bool(PureWindowsPath(text).anchor)
