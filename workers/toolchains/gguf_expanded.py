"""Writes the checkpoint that a GGUF file stands for: safetensors, config.json, tokenizer.

Each number is what llama.cpp computes with: what is stored in F16 or BF16 stays so, blocks with a scale become fp32,
which holds every product of a step and its scale. A part of one tensor at a time is in memory.
"""

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import torch

from olivepress.checkpoints.files import CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, WEIGHTS, is_weights, relevant_files
from olivepress.checkpoints.gguf_folder import GgufFolder, read_gguf_folder
from olivepress.checkpoints.gguf_header import TYPES
from olivepress.checkpoints.gguf_model import Restored
from olivepress.checkpoints.gguf_vocabulary import stop_ids, template_of, vocabulary_of
from olivepress.checkpoints.tokenizer_files import has_chat_template, has_tokenizer
from olivepress.errors import BadCheckpoint, NoRoom
from workers.toolchains.gguf_tokenizer import write_tokenizer
from workers.toolchains.library_edge import library_edge

# Weights that are widened at a time: 64 MiB of fp32.
CHUNK_WEIGHTS = 2**24
# Beside the weights: the tokenizer, the configs.
SPARE_BYTES = 2**26
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
HEADER_ALIGNMENT = 8
ADVICE = "copy it again, or submit the checkpoint that it was made from"


def expanded(directory: Path, into: Path) -> Path:
    """Write the checkpoint that the GGUF file in `directory` stands for to `into`, and return that.

    Raises:
        BadCheckpoint: there is no GGUF file, or it cannot be read.
        UnsupportedArchitecture: its architecture does not come back from GGUF as it was.
        NoRoom: what it stands for does not fit on the disk.
    """
    folder = read_gguf_folder(directory)
    if folder is None:
        raise BadCheckpoint(f"{directory} has no GGUF file any more; copy it there")
    dtype = _dtype(folder)
    _refuse_without_room(folder, into.parent, dtype)
    into.mkdir(parents=True)
    with library_edge(f"the weights in {folder.file.path} cannot be read", ADVICE):
        _write_weights(folder, into / WEIGHTS, dtype)
    config = folder.restoration.config | {"dtype": DTYPE_NAMES[dtype]}
    (into / CONFIG).write_text(json.dumps(config, indent=2))
    for file in relevant_files(directory):
        if not is_weights(file.name) and file.name != CONFIG:
            target = into / file.relative_to(directory)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    _write_text_files(folder, into)
    return into


def _write_text_files(folder: GgufFolder, into: Path) -> None:
    """What lies beside the file counts; what is not there is taken from it."""
    if not has_tokenizer(into):
        with library_edge(f"the tokenizer in {folder.file.path} cannot be read", ADVICE):
            write_tokenizer(vocabulary_of(folder.file), into)
    template = template_of(folder.file)
    if template and not has_chat_template(into):
        (into / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    stops = stop_ids(folder.file)
    if stops and not (into / GENERATION_CONFIG).exists():
        (into / GENERATION_CONFIG).write_text(json.dumps({"eos_token_id": stops}))


def _refuse_without_room(folder: GgufFolder, place: Path, dtype: str) -> None:
    """See that the disk has room, before it is filled to the last byte for all steps of this worker."""
    weights = sum(tensor.source.element_count for tensor in folder.restoration.tensors)
    wanted = weights * DTYPES[dtype].itemsize + SPARE_BYTES
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    if wanted > free:
        raise NoRoom(
            f"{folder.file.path} stands for {weights:,} weights, {wanted / 1e9:,.1f} GB as a checkpoint, and the "
            f"worker has {free / 1e9:,.1f} GB of disk free; free some, or give it a larger disk, and submit again"
        )


def _dtype(folder: GgufFolder) -> str:
    """The narrowest type for all tensors that holds each of their numbers."""
    likely = folder.likely_dtype
    if likely == "F32":
        return likely
    for restored in folder.restoration.tensors:
        if len(restored.source.shape) > 1:
            continue
        stored = torch.cat([part.clone() for part in _parts(folder, restored)])
        narrow = _restored(stored, restored, DTYPES[likely])
        back = narrow.float() + 1 if restored.less_one else narrow.float()
        if not torch.equal(back, stored.float()):
            return "F32"
    return likely


def _write_weights(folder: GgufFolder, path: Path, dtype: str) -> None:
    """One safetensors file (https://github.com/huggingface/safetensors#format), written as its tensors are read."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for restored in folder.restoration.tensors:
        start, end = end, end + restored.source.element_count * DTYPES[dtype].itemsize
        table[restored.name] = {"dtype": dtype, "shape": restored.source.shape, "data_offsets": (start, end)}
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % HEADER_ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for restored in folder.restoration.tensors:
            for part in _parts(folder, restored):
                file.write(_restored(part, restored, DTYPES[dtype]).contiguous().view(torch.uint8).numpy().data)


def _restored(part: torch.Tensor, restored: Restored, dtype: torch.dtype) -> torch.Tensor:
    return (part.float() - 1).to(dtype) if restored.less_one else part.to(dtype)


def _parts(folder: GgufFolder, restored: Restored) -> Iterator[torch.Tensor]:
    """The tensor's numbers as they are stored, some rows at a time, in the order that transformers has them in."""
    tensor = restored.source
    _, block, block_bytes = TYPES[tensor.type_number]
    # A bias of queries or keys has the order of their rows.
    columns = tensor.shape[-1] if restored.heads is None or len(tensor.shape) > 1 else 1
    rows = tensor.element_count // columns
    stored = np.memmap(folder.file.path, np.uint8, "r", tensor.start, shape=(rows, columns // block * block_bytes))
    order = _row_order(rows, restored.heads)
    widen = _widener(tensor.type_number)
    step = max(1, CHUNK_WEIGHTS // columns)
    for start in range(0, rows, step):
        chosen = slice(start, start + step) if order is None else order[start : start + step]
        # A copy: the file's own pages are read-only.
        yield widen(np.array(stored[chosen])).flatten()


def _row_order(rows: int, heads: int | None) -> np.ndarray | None:
    """Where each row of transformers lies: there the halves of a head follow each other, here their pairs do."""
    if heads is None:
        return None
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).flatten()


def _widener(type_number: int) -> Callable[[np.ndarray], torch.Tensor]:
    kind = TYPES[type_number][0]
    if kind in DTYPES:
        return lambda rows: torch.from_numpy(rows).view(DTYPES[kind])

    def widen(rows: np.ndarray) -> torch.Tensor:
        # Scales that are not finite are told by the scan of the weights.
        with np.errstate(all="ignore"):
            return torch.from_numpy(gguf.dequantize(rows, gguf.GGMLQuantizationType(type_number)))

    return widen
