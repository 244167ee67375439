"""The files that make up a checkpoint: which they are, where they may lie, what names their content and their state."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from olivepress.errors import BadCheckpoint, CheckpointChanged, OlivepressError, PathNotAllowed, TransientError
from olivepress.jobs import digest_of

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
PICKLES = "pytorch_model*.bin"
GGUF = ".gguf"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_MODELS = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json", "*.tiktoken",
)  # fmt: skip
MORE_TEMPLATES = "additional_chat_templates"
SIDECARS = ("SHA256SUMS", "*.sha256")
# Everything that can change what a conversion writes or whether it is allowed; not README.md, optimizer.pt, ...
RELEVANT = (
    CONFIG, GENERATION_CONFIG, "quantize_config.json", "quant_config.json",
    "*.safetensors", "*.safetensors.index.json", PICKLES, PICKLE_INDEX, f"*{GGUF}", ADAPTER_CONFIG,
    *TOKENIZER_MODELS, TOKENIZER_CONFIG, "merges.txt", "special_tokens_map.json", "added_tokens.json",
    CHAT_TEMPLATE, f"{MORE_TEMPLATES}/*.jinja",
)  # fmt: skip
# Passed over by transformers without a word where they are broken, or with a confusing one.
SMALL_JSON = (GENERATION_CONFIG, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json")
HUB_SCHEME = "hf://"
LET_FINISH = "let the training or copying finish, then submit again"
SETTLED_AFTER_S = 2.0
MAX_JSON_BYTES = 256 * 2**20
BLOCK_BYTES = 2**22
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class HashedFile:
    """A file of a checkpoint by its content; `path` is relative to the checkpoint, with forward slashes."""

    path: str
    size_bytes: int
    sha256: str


def allowed_directory(path: str, roots: Sequence[str | Path]) -> Path:
    """The directory that `path` names, if it lies under one of the roots once every link is followed.

    Raises:
        PathNotAllowed: it does not; said before anything tells whether it exists.
        BadCheckpoint: the path is not absolute, names a hub, or no directory is there.
    """
    if path.startswith(HUB_SCHEME):
        raise BadCheckpoint(
            f"'{path}' is on a hub and this worker fetches nothing; download it into a directory under an allowed root "
            "and submit that"
        )
    if not _is_text(path):
        raise BadCheckpoint(f"the name '{path}' is no UTF-8 text; rename the folder")
    if "\0" in path or not Path(path).is_absolute():
        raise BadCheckpoint(
            f"'{path}' is no absolute path, and a worker has no directory to start from; give all of it"
        )
    if not is_under(path, roots):
        allowed = ", ".join(map(str, roots)) or "none"
        raise PathNotAllowed(
            f"'{path}' lies outside the directories that checkpoints may come from (allowed: {allowed}); move it "
            "there, or let an administrator add its directory with 'olivepress up --root DIR' or "
            "OLIVEPRESS_CHECKPOINT_ROOTS"
        )
    directory = Path(path)
    if _is(Path.is_file, directory):
        raise BadCheckpoint(f"'{path}' is a file; give the directory that holds config.json and the weights")
    if not _is(Path.is_dir, directory):
        raise BadCheckpoint(f"there is no directory '{path}' on this worker; check the path")
    if not os.access(path, os.R_OK | os.X_OK):
        raise BadCheckpoint(f"the directory '{path}' cannot be read: permission denied; let the worker's user read it")
    return directory


def check_links(directory: Path, roots: Sequence[str | Path]) -> None:
    """See that no entry of the directory is a link that leads out of the roots, and that what is read are files.

    Raises:
        PathNotAllowed: a link does.
        BadCheckpoint: a relevant name is a device, a pipe or the like.
    """
    for entry in _entries(directory):
        if entry.is_symlink() and not is_under(entry, roots):
            raise PathNotAllowed(
                f"'{entry}' is a link that leads out of the allowed directories ({', '.join(map(str, roots))}); "
                "replace it with the file itself, or let an administrator add the directory it leads to with "
                "'olivepress up --root DIR'"
            )
        if is_relevant(entry.relative_to(directory).as_posix(), sidecars=True):
            if not entry.exists():
                raise BadCheckpoint(f"'{entry}' is a link to a file that is not there; copy the file itself")
            if not entry.is_file():
                raise BadCheckpoint(f"'{entry}' is no regular file; replace it with one")


def _is_text(path: str) -> bool:
    # A name of other bytes comes from the operating system with lone surrogates, which nothing can store or send.
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is(test: Callable[[Path], bool], path: Path) -> bool:
    """The test's answer; False where the path cannot even be asked about (too long, or its parent is closed)."""
    try:
        return test(path)
    except (OSError, ValueError):
        return False


def is_under(path: str | Path, roots: Sequence[str | Path]) -> bool:
    """Whether the path lies in one of the roots once every link is followed."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(root)) for root in roots)


def is_relevant(name: str, *, sidecars: bool = False) -> bool:
    """Whether a file of this name, relative to a checkpoint, is one of RELEVANT (or of SIDECARS)."""
    if "/" in name and not name.startswith(f"{MORE_TEMPLATES}/"):
        return False
    return any(fnmatchcase(name, pattern) for pattern in (*RELEVANT, *(SIDECARS if sidecars else ())))


def is_weights(name: str) -> bool:
    """Whether a relevant file of this name holds or lists weights, in whatever format."""
    return name == PICKLE_INDEX or name.endswith((".safetensors", GGUF)) or fnmatchcase(name, PICKLES)


def relevant_files(directory: Path, *, sidecars: bool = False) -> list[Path]:
    """The relevant files that are there, sorted by name; all safetensors files, used or not."""
    return [
        entry
        for entry in _entries(directory)
        if is_relevant(entry.relative_to(directory).as_posix(), sidecars=sidecars) and entry.is_file()
    ]


def gguf_files(directory: Path) -> list[Path]:
    """The GGUF files that hold a folder's weights; none where those are there in another format."""
    return [file for file in relevant_files(directory) if file.suffix == GGUF]


def _entries(directory: Path) -> list[Path]:
    entries = sorted([*directory.iterdir(), *directory.glob(f"{MORE_TEMPLATES}/*")])
    # Trainers leave a GGUF beside the checkpoint that it was made from, and that is what is read.
    if any(is_weights(entry.name) and entry.suffix != GGUF for entry in entries):
        return [entry for entry in entries if entry.suffix != GGUF]
    return entries


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        BadCheckpoint: it cannot be read, or holds something else.
    """
    try:
        # Opening a pipe would wait for ever.
        if not path.is_file():
            raise BadCheckpoint(f"{path.parent} has no {path.name}; add the file")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadCheckpoint(f"{path} is larger than any {path.name} should be; replace it with the right file")
        text = path.read_text(encoding="utf-8")
        refuse_lfs_pointer(path, text.encode()[: len(LFS_POINTER)])
        value = json.loads(text)
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise BadCheckpoint(f"{path} is no JSON{where}; save or copy it again") from None
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{path} holds no JSON object; save or copy it again")
    return value


def refuse_lfs_pointer(path: Path, beginning: bytes) -> None:
    """Raise BadCheckpoint where a file is only what Git LFS left in its place."""
    if beginning == LFS_POINTER:
        raise BadCheckpoint(f"{path} is a Git LFS pointer, not the file itself; run 'git lfs pull' where it was cloned")


def unreadable(path: Path, error: OSError) -> OlivepressError:
    """What to raise where the operating system does not give a file."""
    if isinstance(error, PermissionError):
        return BadCheckpoint(f"{path} cannot be read: permission denied; let the worker's user read it")
    if isinstance(error, FileNotFoundError):
        return CheckpointChanged(f"{path} vanished while it was read; {LET_FINISH}")
    return TransientError(f"{path} cannot be read: {error.strerror}; see whether its disk or share is well")


def hash_file(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 (hex) of a file, read in blocks; `on_bytes` is told how many bytes each had."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(BLOCK_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(block[:count])
                on_bytes(count)
    except OSError as error:
        raise unreadable(path, error) from None
    return digest.hexdigest()


def checkpoint_digest(files: Iterable[HashedFile], base_digest: str | None) -> str:
    """What names a checkpoint by content: SHA-256 over its files (path, size, SHA-256) and its base's digest."""
    entries = sorted([file.path, file.size_bytes, file.sha256] for file in files)
    return digest_of({"files": entries, "base": base_digest})


def adapter_base(path: Path) -> Path | None:
    """The local directory that an adapter names as its base; None where it names none or `path` is no adapter."""
    try:
        named = read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path")
    except (BadCheckpoint, TransientError):
        return None
    if isinstance(named, str) and Path(named).is_absolute() and _is(Path.is_dir, Path(named)):
        return Path(named)
    return None


def file_identity(path: Path, base: Path | None = None, *, settled: bool = False) -> str | None:
    """What names the state of a checkpoint's files without reading them: by stat alone.

    SHA-256 over place, size, times, inode and device of every relevant file of the checkpoint and its base. It means
    something only on the machine where it was computed.

    Args:
        settled: give None while a file is so new that a second change could leave its times as they are (the
            coarsest file systems count in steps of two seconds).

    Returns:
        The identity (hex), or None where the files cannot be listed.
    """
    places: list[list[Any]] = []
    newest_ns = 0
    try:
        for directory in (path, base) if base else (path,):
            places.append([os.path.realpath(directory)])
            for file in relevant_files(directory, sidecars=True):
                state = file.stat()
                newest_ns = max(newest_ns, state.st_mtime_ns, state.st_ctime_ns)
                name = file.relative_to(directory).as_posix()
                times = [state.st_mtime_ns, state.st_ctime_ns]
                places.append([name, state.st_size, *times, state.st_ino, state.st_dev])
    except (OSError, ValueError):
        return None
    if settled and time.time_ns() - newest_ns < SETTLED_AFTER_S * 1e9:
        return None
    return digest_of(places)
