"""The first step: a checkpoint is looked at whole, hashed, and refused with one message where it would go wrong later.

Cheap checks come first (path, headers, architecture, tokenizer), so that most mistakes are told in a second; then
every byte is read once.
"""

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from olivepress.checkpoints import checksums
from olivepress.checkpoints.files import (
    LET_FINISH,
    HashedFile,
    allowed_directory,
    check_links,
    checkpoint_digest,
    file_identity,
    hash_file,
    is_under,
    is_weights,
    relevant_files,
    unreadable,
)
from olivepress.checkpoints.gguf_folder import gguf_path
from olivepress.checkpoints.reading import COMPUTED_NAME, LAYER_NUMBER, Checkpoint, adapter_base, read_checkpoint
from olivepress.checkpoints.tokenizer_files import chat_template_text
from olivepress.errors import BadCheckpoint, CheckpointChanged, OlivepressError
from workers.steps import model_directory
from workers.steps.context import StepContext
from workers.toolchains import architecture, gguf_expanded, tokenizers, unpickled, weights

log = logging.getLogger(__name__)

READERS = min(4, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class _Read:
    """What reading all files of one folder gave."""

    files: list[HashedFile]
    zero_matrices: list[str]
    tensor_sha256: dict[str, str]


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """Check and hash a checkpoint; nothing is written.

    Args:
        spec: `path`, `base` (or None), `roots`, the directories under which both must lie, and `allow_pickle`, whether
            weights in a pickle may be opened (not, where it is absent); `chat_template`, the file whose template is
            meant where two differ (None or absent: two that differ are refused); `is_model`, whether it is an ONNX
            model directory instead (see workers.steps.model_directory), and with it `source`, the `path` and
            `base_path` of the checkpoint that it was made from.

    Returns:
        What the later steps need to know of it: the digest of its content, facts of the model (of an adapter's base),
        its files with their SHA-256, the base's in the same form, and notes on what is unusual. With `chat_template`,
        the template that was chosen.

    Raises:
        BadCheckpoint, PathNotAllowed, UnsafeCheckpoint, UnsupportedArchitecture: it cannot be used; the message says
            why and what to do.
        NoRoom: what a GGUF file stands for does not fit on the disk.
        CheckpointChanged: its files changed while they were read.
    """
    with _told_on_one_line():
        return _import(spec, context) if spec.get("is_model") else _run(spec, context)


def _import(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """A model directory, and the checkpoint that it was made from where that is named."""
    result = model_directory.run(spec, context)
    source = spec.get("source")
    if source:
        limits = {name: spec[name] for name in ("roots", "allow_pickle") if name in spec}
        result["source"] = _run({"path": source["path"], "base": source["base_path"], **limits}, context)
    return result


def _run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    directory, base = _directories(spec)
    try:
        folders = _Folders(directory, base, bool(spec.get("allow_pickle")), context.scratch)
        return _ingest(folders, context, spec.get("chat_template"))
    except OSError as error:
        raise unreadable(Path(error.filename or directory), error) from None


@contextmanager
def _told_on_one_line() -> Iterator[None]:
    """A file's name may hold line breaks and bytes that are no text; an error that names it must not."""
    try:
        yield
    except OlivepressError as error:
        told = str(error).encode(errors="backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
        if told == str(error):
            raise
        raise type(error)(told) from error


class _Folders:
    """The submitted folders, and where each is read: itself, or a copy with its pickle or GGUF as safetensors."""

    def __init__(self, directory: Path, base: Path | None, allow_pickle: bool, scratch: Path) -> None:
        self.directory, self.base = directory, base
        self.scratch, self.allow_pickle = scratch, allow_pickle
        self.read_from: dict[Path, Path] = {}

    def read(self) -> Checkpoint:
        """The checkpoint; what is wrong with a copy is told of the folder that it was made from."""
        with self.told_of_originals():
            for number, folder in enumerate(filter(None, (self.directory, self.base))):
                copy = self.scratch / f"as-safetensors-{number}"
                if gguf_path(folder):
                    self.read_from[folder] = gguf_expanded.expanded(folder, copy)
                elif self.allow_pickle and unpickled.has_only_pickles(folder):
                    self.read_from[folder] = unpickled.unpickled(folder, copy)
            base = self.base and self.read_from.get(self.base, self.base)
            return read_checkpoint(self.read_from.get(self.directory, self.directory), base)

    @contextmanager
    def told_of_originals(self) -> Iterator[None]:
        try:
            yield
        except BadCheckpoint as error:
            told = str(error)
            for folder, copy in self.read_from.items():
                for file in copy.iterdir() if (gguf := gguf_path(folder)) else ():
                    if not (folder / file.name).exists():
                        told = told.replace(str(file), str(gguf))
                told = told.replace(str(copy), str(folder))
            raise type(error)(told) from error

    def original(self, folder: Checkpoint) -> Path:
        """The submitted folder that this checkpoint was read from."""
        return next((one for one, copy in self.read_from.items() if copy == folder.directory), folder.directory)

    def files(self, folder: Checkpoint) -> list[Path]:
        """The submitted files that make up this checkpoint."""
        original = self.original(folder)
        if original == folder.directory:
            return list(folder.files)
        return [path for path in relevant_files(original) if path.suffix != ".safetensors"]

    def weight_bytes(self, folder: Checkpoint) -> int:
        """Bytes of the submitted files that hold this checkpoint's weights, and its base's."""
        if self.original(folder) == folder.directory:
            own = sum(file.size_bytes for file in folder.weights)
        else:
            own = sum(path.stat().st_size for path in self.files(folder) if is_weights(path.name))
        return own + (self.weight_bytes(folder.base) if folder.base else 0)

    def hashed(self, folder: Checkpoint, read: "_Read") -> "_Read":
        """What was read, with the submitted files in the place of a copy's."""
        original = self.original(folder)
        if original == folder.directory:
            return read
        files = [
            HashedFile(path.relative_to(original).as_posix(), path.stat().st_size, hash_file(path))
            for path in self.files(folder)
        ]
        return dataclasses.replace(read, files=files)


def _ingest(folders: _Folders, context: StepContext, chosen_template: str | None) -> dict[str, Any]:
    directory, base = folders.directory, folders.base
    identity = file_identity(directory, base)
    checkpoint = folders.read()
    with folders.told_of_originals():
        result = _checked(checkpoint, folders, context, chosen_template)
        if chosen_template:
            result["chat_template"] = chat_template_text(checkpoint.tokenizer_directory, chosen_template)
    result["sizes"]["is_expanded"] = bool(gguf_path(base or directory))
    if file_identity(directory, base) != identity:
        raise CheckpointChanged(f"files in {directory} or its base changed while they were read; {LET_FINISH}")
    return result


def _checked(
    checkpoint: Checkpoint, submitted: _Folders, context: StepContext, chosen_template: str | None
) -> dict[str, Any]:
    context.report_progress("checking", 0.0)
    model = architecture.check_architecture(checkpoint.model)
    notes = []
    if checkpoint.base:
        notes += architecture.check_adapter(checkpoint)
        model = dataclasses.replace(
            model, vocabulary_size=architecture.vocabulary_of(checkpoint) or model.vocabulary_size
        )
    notes += tokenizers.check_tokenizer(checkpoint, model, chosen_template)
    folders = [checkpoint, checkpoint.base] if checkpoint.base else [checkpoint]
    expected = [_expected_checksums(submitted.original(each), submitted.files(each)) for each in folders]
    progress = _Progress(context.report_progress, sum(file.stat().st_size for each in folders for file in each.files))
    reads = [submitted.hashed(each, _read(each, frozenset(model.tied_pair or ()), progress)) for each in folders]
    for folder, read, sums in zip(folders, reads, expected, strict=True):
        checksums.check_sums(submitted.original(folder), read.files, sums)
    _check_tied_pair(checkpoint.model, model, reads[-1])
    notes += _zero_notes(checkpoint, reads)
    for note in notes:
        log.info("note: %s", note)
    base_path = str(submitted.base) if submitted.base else None
    return _result(checkpoint, model, reads, notes, base_path) | {"size_bytes": submitted.weight_bytes(checkpoint)}


def _directories(spec: dict[str, Any]) -> tuple[Path, Path | None]:
    """The checkpoint's directory and its base's, both allowed."""
    roots = spec["roots"]
    directory = allowed_directory(spec["path"], roots)
    check_links(directory, roots)
    base = allowed_directory(spec["base"], roots) if spec.get("base") else adapter_base(directory)
    # A base that the adapter's own file names outside the roots counts as not there: its path is not the user's.
    if base and not is_under(base, roots):
        base = None
    if base:
        check_links(base, roots)
    return directory, base


def _expected_checksums(directory: Path, files: list[Path]) -> dict[str, tuple[str, str]]:
    expected = checksums.expected_checksums(directory, [file.relative_to(directory).as_posix() for file in files])
    checksums.check_listed(directory, expected)
    return expected


def _name(folder: Checkpoint, file: Path) -> str:
    return file.relative_to(folder.directory).as_posix()


class _Progress:
    """Counts the bytes that several threads read, and stops them all when one has found a fault."""

    def __init__(self, report: Callable[[str, float], None], total_bytes: int) -> None:
        self._report, self._total_bytes = report, total_bytes
        self._read_bytes = 0
        self._reported_percent = -1
        self._lock = threading.Lock()
        self.is_stopped = False

    def add(self, count: int) -> None:
        if self.is_stopped:
            raise CancelledError
        # The report goes through a pipe that takes one writer at a time.
        with self._lock:
            self._read_bytes += count
            percent = 100 * self._read_bytes // self._total_bytes
            if percent > self._reported_percent:
                self._reported_percent = percent
                self._report("reading", self._read_bytes / self._total_bytes)


def _read(folder: Checkpoint, fingerprint: frozenset[str], progress: _Progress) -> _Read:
    """Hash all files of a folder, and look at the numbers of those that hold weights, several at a time."""
    with_weights = {file.path: file for file in folder.weights}

    def read(path: Path) -> weights.ScannedFile:
        if path not in with_weights:
            return weights.ScannedFile(hash_file(path, progress.add))
        return weights.scan(with_weights[path], progress.add, skip=_is_computed, fingerprint=fingerprint)

    with weights.one_thread(), ThreadPoolExecutor(READERS) as pool:
        futures = [pool.submit(read, path) for path in folder.files]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        if fault := next(filter(None, (future.exception() for future in done)), None):
            progress.is_stopped = True
            pool.shutdown(cancel_futures=True)
            raise fault
        scanned = [future.result() for future in futures]
    files = [
        HashedFile(_name(folder, path), path.stat().st_size, scan.sha256)
        for path, scan in zip(folder.files, scanned, strict=True)
    ]
    return _Read(
        files,
        zero_matrices=[name for scan in scanned for name in scan.zero_matrices],
        tensor_sha256={name: sha256 for scan in scanned for name, sha256 in scan.tensor_sha256.items()},
    )


def _is_computed(name: str) -> bool:
    return bool(COMPUTED_NAME.search(name))


def _check_tied_pair(checkpoint: Checkpoint, model: architecture.ModelFacts, read: _Read) -> None:
    if model.tied_pair is None:
        return
    copy, source = model.tied_pair
    if read.tensor_sha256[copy] != read.tensor_sha256[source]:
        raise BadCheckpoint(
            f"config.json in {checkpoint.directory} says that '{copy}' is '{source}' (tie_word_embeddings), and the "
            "weights hold two that differ; set tie_word_embeddings to false if both were trained, else take one out"
        )


def _zero_notes(checkpoint: Checkpoint, reads: list[_Read]) -> list[str]:
    """Matrices that are all zero: no model can do without its embeddings, the rest may be meant so."""
    embedding = checkpoint.embedding
    zero_in_model = reads[-1].zero_matrices
    if embedding and embedding.name in zero_in_model:
        raise BadCheckpoint(
            f"'{embedding.name}' in {checkpoint.model.directory} is all zeros, so the model tells no word from "
            "another; copy the file again from where it was trained"
        )
    if (layer := _dead_layer(checkpoint.model, set(zero_in_model))) is not None:
        raise BadCheckpoint(
            f"every matrix of layer {layer} in {checkpoint.model.directory} is all zeros, so a part of the file was "
            "never written; copy it again from where it was trained"
        )
    notes = [f"'{name}' in {checkpoint.model.directory} is all zeros" for name in zero_in_model]
    if checkpoint.base:
        steps = {tensor.name for tensor in checkpoint.tensors if ".lora_B." in tensor.name}
        if steps == {tensor.name for tensor in checkpoint.tensors if ".lora_A." not in tensor.name} and (
            steps <= set(reads[0].zero_matrices)
        ):
            raise BadCheckpoint(
                f"the adapter in {checkpoint.directory} changes nothing: all its lora_B matrices are zero, as before "
                "the first step of training; save it after the training, or submit its base alone"
            )
    return notes


def _dead_layer(checkpoint: Checkpoint, zero_matrices: set[str]) -> int | None:
    """The first layer without a matrix that holds anything; some zero matrices in a layer may be meant so."""
    matrices: dict[int, set[str]] = {}
    for tensor in checkpoint.tensors:
        layer = LAYER_NUMBER.search(tensor.name)
        if layer and len(tensor.shape) > 1:
            matrices.setdefault(int(layer[1]), set()).add(tensor.name)
    return next((layer for layer, names in sorted(matrices.items()) if names <= zero_matrices), None)


def _result(
    checkpoint: Checkpoint, model: architecture.ModelFacts, reads: list[_Read], notes: list[str], base_path: str | None
) -> dict[str, Any]:
    base = checkpoint.base
    base_digest = checkpoint_digest(reads[-1].files, None) if base else None
    return {
        "checkpoint_digest": checkpoint_digest(reads[0].files, base_digest),
        "kind": checkpoint.kind.value,
        "architecture": checkpoint.architecture,
        "family": checkpoint.family,
        "parameters": model.parameters,
        "sizes": dataclasses.asdict(checkpoint.sizes()),
        "dtype": checkpoint.dtype,
        "tied_embeddings": model.tied_embeddings,
        "context_length": model.context_length,
        "vocabulary_size": model.vocabulary_size,
        "files": [dataclasses.asdict(file) for file in reads[0].files],
        "base": base
        and {
            "checkpoint_digest": base_digest,
            "files": [dataclasses.asdict(file) for file in reads[-1].files],
            "architecture": base.architecture,
            "family": base.family,
        },
        "base_path": base_path,
        "notes": notes,
    }
