"""The first step of an import: a model directory that strangers made is taken over file by file, and judged as taken.

Nothing in it is trusted. Only the files that a model consists of are copied, each once, and all that follows reads the
copies: what changes behind us has no effect. Then it is packaged as a converted model would be, and its files are held
against each other.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from olivepress.checkpoints.files import (
    BLOCK_BYTES,
    LFS_POINTER,
    HashedFile,
    allowed_directory,
    checkpoint_digest,
    is_under,
    refuse_lfs_pointer,
    unreadable,
)
from olivepress.checkpoints.model_files import (
    CONFIG_BYTES_AT_MOST,
    TOKENIZER_FILES,
    WHAT_NOW,
    declared_name,
    find_model_directory,
    inside,
    model_identity,
    parse_config,
    settings_of,
)
from olivepress.delivery.archive import extract, read_archive
from olivepress.errors import BadArtifact, BadCheckpoint, CheckpointChanged, DiskFull, PathNotAllowed
from olivepress.foundry.inference_model import GENAI_CONFIG_FILE, SUMS_FILE, read_sums
from workers.measures.format import WHAT_NOW as CONVERT_AGAIN
from workers.measures.format import check_format
from workers.steps import package
from workers.steps.context import StepContext
from workers.toolchains.imported_graph import ImportedGraph, read_imported

log = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
SMALL_BYTES_AT_MOST = 256 * 2**20
SMALL_FILES = (GENAI_CONFIG_FILE, SUMS_FILE)
UNPACKED, COPIED = 0.3, 0.9


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """Take a model directory over into `context.output`, its model files alone.

    Args:
        spec: `path`, a directory or the file of an exported version, and `roots`, under which it must lie; `family`,
            where it is of another than its config says. What ingest found in the source of it, if that is at hand, is
            added as `source` by workers.steps.ingest.

    Returns:
        What the later steps need to know, under the names that the ingest of a checkpoint has; `sizes` is None, and
        `precision`, `foundry` (its own settings of generation) and `declared_name` are added.

    Raises:
        BadCheckpoint, PathNotAllowed, BadArtifact: it cannot be used; the message says why and what to do.
        CheckpointChanged: its files changed while they were read.
        DiskFull: no room in the workspace.
    """
    path = Path(spec["path"])
    try:
        identity = model_identity(path)
        directory, roots = _opened(spec, context)
        taken = _Taken(find_model_directory(directory), roots, context)
        result = _taken_over(taken, spec, context)
        if model_identity(path) != identity:
            raise CheckpointChanged(f"files in {path} changed while they were read; import it when they are all there")
        return result
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFull(f"no room was left in the workspace for {path}; free some, and it is tried again") from error
        raise unreadable(Path(error.filename or path), error) from None


def _opened(spec: dict[str, Any], context: StepContext) -> tuple[Path, Sequence[str | Path]]:
    """The directory to look in, and where links in it may lead."""
    path, roots = Path(spec["path"]), spec["roots"]
    if not (path.is_absolute() and is_under(path, roots) and path.is_file()):
        return allowed_directory(spec["path"], roots), roots
    archive = read_archive(path)
    target = context.scratch / "unpacked"
    target.mkdir()
    extract(archive, target, lambda done, total: context.report_progress("unpacking", UNPACKED * done / max(1, total)))
    log.info("the file holds %s:%d", archive.model, archive.number)
    return target, [target]


class _Taken:
    """The files that were taken over, and the taking of one more."""

    def __init__(self, directory: Path, roots: Sequence[str | Path], context: StepContext) -> None:
        self.directory, self._roots, self._context = directory, roots, context
        self.files: list[HashedFile] = []
        self._copied_bytes = 0
        self._total_bytes = max(1, sum(entry.stat().st_size for entry in directory.iterdir() if entry.is_file()))

    def has(self, name: str) -> bool:
        """Whether the directory has an entry of this name, whatever it is."""
        return os.path.lexists(self.directory / name)

    def take(self, name: PurePosixPath, most_bytes: int | None = None) -> Path:
        """Copy a file into the output; the copy."""
        source, target = self.directory / name, self._context.output / name
        if not is_under(source, self._roots):
            raise PathNotAllowed(
                f"'{source}' is a link that leads out of the allowed directories; replace it with the file itself"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        # Opening a pipe would wait for ever.
        with os.fdopen(os.open(source, os.O_RDONLY | os.O_NONBLOCK), "rb", 0) as file, target.open("xb") as out:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise BadCheckpoint(f"'{source}' is no regular file; replace it with one")
            if most_bytes is not None and state.st_size > most_bytes:
                raise BadCheckpoint(f"'{source}' has {state.st_size} bytes, far more than such a file has; {WHAT_NOW}")
            copied = 0
            while block := file.read(BLOCK_BYTES):
                if not copied:
                    refuse_lfs_pointer(source, block[: len(LFS_POINTER)])
                digest.update(block)
                out.write(block)
                copied += len(block)
                self._copied_bytes += len(block)
                self._context.report_progress("copying", min(COPIED, COPIED * self._copied_bytes / self._total_bytes))
        self.files.append(HashedFile(name.as_posix(), copied, digest.hexdigest()))
        return target

    def small(self, name: str) -> bytes:
        """The content of a small file that is not taken over."""
        source = self.directory / name
        if not is_under(source, self._roots) or not source.is_file():
            raise BadCheckpoint(f"'{source}' is no regular file in the allowed directories; {WHAT_NOW}")
        if source.stat().st_size > CONFIG_BYTES_AT_MOST:
            raise BadCheckpoint(f"'{source}' is far larger than such a file is; {WHAT_NOW}")
        return source.read_bytes()


def _taken_over(taken: _Taken, spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    config = parse_config(taken.take(PurePosixPath(GENAI_CONFIG_FILE), CONFIG_BYTES_AT_MOST).read_bytes())
    model = config["model"]
    graph = _take_model(taken, model["decoder"].get("filename", "model.onnx"))
    for name in TOKENIZER_FILES:
        if taken.has(name):
            taken.take(PurePosixPath(name), SMALL_BYTES_AT_MOST)
    _check_sums(taken)
    foundry = settings_of(config.get("search") or {}, model["context_length"])
    family = spec.get("family") or model["type"]
    context.report_progress("checking", COPIED)
    _check_as_package(context, {"foundry": foundry, "context_length": model["context_length"], "family": family})
    _check_stops(context.output, model)
    notes = _notes(taken)
    for note in notes:
        log.info("note: %s", note)
    return {
        "checkpoint_digest": checkpoint_digest(taken.files, None),
        "kind": "model",
        "architecture": _architecture(taken) or model["type"],
        "family": family,
        "parameters": None,
        "size_bytes": sum(file.size_bytes for file in taken.files),
        "sizes": None,
        "dtype": graph.precision,
        "precision": graph.precision,
        "context_length": model["context_length"],
        "vocabulary_size": model["vocab_size"],
        "foundry": foundry,
        "declared_name": declared_name(taken.directory),
        "files": [dataclasses.asdict(file) for file in taken.files],
        "base": None,
        "base_path": None,
        "notes": notes,
    }


def _take_model(taken: _Taken, name: str) -> ImportedGraph:
    """The graph and the files that its weights lie in."""
    file = inside(name)
    if file.suffix != ".onnx":
        raise BadCheckpoint(f"{GENAI_CONFIG_FILE} calls the model '{name[:80]}', which is no .onnx file; {WHAT_NOW}")
    if not taken.has(name):
        raise BadCheckpoint(f"{taken.directory} has no {name}, which {GENAI_CONFIG_FILE} names; {WHAT_NOW}")
    graph = read_imported(taken.take(file))
    for location in graph.external_files:
        # Relative to the graph's own directory, as onnxruntime reads it.
        external = inside((file.parent / inside(location)).as_posix())
        if not taken.has(external.as_posix()):
            raise BadCheckpoint(f"{taken.directory} has no {external}, which holds weights of {name}; {WHAT_NOW}")
        if external.as_posix() in {known.path for known in taken.files} | {*TOKENIZER_FILES, *SMALL_FILES}:
            raise BadCheckpoint(f"{name} says that weights are in {external}, which is no file of weights; {WHAT_NOW}")
        taken.take(external)
    return graph


def _check_sums(taken: _Taken) -> None:
    """Files that checksums beside them were written for must be those."""
    if not taken.has(SUMS_FILE):
        return
    try:
        sums = read_sums(taken.small(SUMS_FILE).decode())
    except (UnicodeDecodeError, BadArtifact) as error:
        raise BadCheckpoint(f"{SUMS_FILE} in {taken.directory} cannot be read ({error}); {WHAT_NOW}") from error
    for file in taken.files:
        if file.path in sums and sums[file.path] != file.sha256:
            raise BadCheckpoint(f"{file.path} is not the file that {SUMS_FILE} was written for; {WHAT_NOW}")
    for name in sums:
        if not taken.has(name):
            raise BadCheckpoint(f"{SUMS_FILE} names {name}, which is missing; {WHAT_NOW}")


def _check_as_package(context: StepContext, spec: dict[str, Any]) -> None:
    """Hold config, graph, weights and tokenizer against each other, as the package step is going to write them."""
    output = context.scratch / "package"
    output.mkdir()
    packaged = dataclasses.replace(context, output=output, inputs={"artifact": context.output})
    try:
        package.run(spec, packaged)
        check_format(output)
    except (BadArtifact, BadCheckpoint) as error:
        words = str(error).replace("convert the checkpoint again", WHAT_NOW).replace(CONVERT_AGAIN, WHAT_NOW)
        words = words.replace("the converted model has", "the model directory has")
        raise BadCheckpoint(words) from error
    finally:
        shutil.rmtree(output)


def _check_stops(output: Path, model: dict[str, Any]) -> None:
    """A token that ends answers must be one that text cannot turn into: else they end at any place."""
    tokenizer = json.loads((output / "tokenizer.json").read_text(encoding="utf-8"))
    special = {int(token["id"]) for token in tokenizer.get("added_tokens") or ()}
    stops = model.get("eos_token_id")
    for token in stops if isinstance(stops, list) else [stops]:
        if special and token not in special:
            raise BadCheckpoint(
                f"{GENAI_CONFIG_FILE} ends answers with token {token}, which the tokenizer has for ordinary text; "
                f"{WHAT_NOW}"
            )


def _architecture(taken: _Taken) -> str | None:
    """As config.json names it, where the directory has that file; nothing else of it is used."""
    try:
        names = json.loads(taken.small("config.json"))["architectures"]
        return str(names[0])[:100] if isinstance(names[0], str) and names[0].isprintable() else None
    except (BadCheckpoint, OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


def _notes(taken: _Taken) -> list[str]:
    name = declared_name(taken.directory)
    kept = {file.path for file in taken.files} | set(SMALL_FILES)
    names = {entry.name.encode(errors="replace").decode() for entry in taken.directory.iterdir()}
    left = sorted(names - kept)
    notes = [f"it calls itself {name}"] if name else []
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        notes.append(f"left out, for no engine reads it: {', '.join(left[:5])}{more}")
    return notes
