"""Weight files that are damaged, incomplete, or hold what no training leaves."""

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from olivepress.errors import ConversionFailed, UnsafeCheckpoint
from tests.broken.breakage import Broken
from tests.integration.ingest_cases import DOWN, edit_json, edit_weights

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 988097824\n"
TERABYTE = 2**40


def overwritten(content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / WEIGHTS).write_bytes(content)


def with_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def break_it(directory: Path) -> None:
        content = (directory / WEIGHTS).read_bytes()
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        change(header)
        encoded = json.dumps(header).encode()
        (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])

    return break_it


def with_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        change(tensors)

    return lambda directory: edit_weights(directory, edit)


def overlap(header: dict[str, Any]) -> None:
    first, second, *_ = sorted(
        (entry for name, entry in header.items() if name != "__metadata__"), key=lambda entry: entry["data_offsets"]
    )
    start, end = second["data_offsets"]
    second["data_offsets"] = [first["data_offsets"][0], first["data_offsets"][0] + end - start]


def a_terabyte_of_nothing(directory: Path) -> None:
    header = {"model.embed_tokens.weight": {"dtype": "F32", "shape": [2**20, 2**18], "data_offsets": [0, TERABYTE]}}
    encoded = json.dumps(header).encode()
    with (directory / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + TERABYTE)


def too_many_tensors(directory: Path) -> None:
    header = {f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(100_001)}
    encoded = json.dumps(header).encode()
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(encoded)) + encoded)


def ghost_in_the_index(directory: Path) -> None:
    weight_map = json.loads((directory / INDEX).read_text())["weight_map"]
    edit_json(directory / INDEX, weight_map=weight_map | {"ghost.weight": FIRST})


TABLE: Mapping[str, Broken] = {
    "a header longer than any": Broken(
        overwritten(struct.pack("<Q", 2**62) + b"{}"), "announce a header of 4,611,686,018,427,387,904 bytes; copy or"
    ),
    "a header that is no JSON": Broken(
        overwritten(struct.pack("<Q", 10) + b"{not json!" + bytes(100)), "its header is no JSON; copy or save it again"
    ),
    "tensors that overlap": Broken(with_header(overlap), "overlaps the tensor before it; copy or save it again"),
    "a type that there is not": Broken(
        with_header(lambda header: header[DOWN].update(dtype="FLOAT9")), f"'{DOWN}' has the unknown type 'FLOAT9'; copy"
    ),
    "a matrix of integers": Broken(
        with_tensors(lambda tensors: tensors.update({DOWN: tensors[DOWN].int()})),
        f"'{DOWN}' in .* is stored as I32, so it is quantized in some way; save the model in",
    ),
    "a transposed matrix": Broken(
        with_tensors(lambda tensors: tensors.update({DOWN: tensors[DOWN].T})),
        f"'{DOWN}' in .* is 128 × 64, by config.json it would be 64 × 128; put",
    ),
    "an untied head that is missing": Broken(
        with_tensors(lambda tensors: tensors.pop("lm_head.weight")),
        "lacks 'lm_head.weight', which a LlamaForCausalLM needs .*; save or copy",
        source="llama",
    ),
    "a final norm that is missing": Broken(
        with_tensors(lambda tensors: tensors.pop("model.norm.weight")), "lacks 'model.norm.weight', which .*; save"
    ),
    "all zeros": Broken(
        with_tensors(lambda tensors: [tensor.zero_() for tensor in tensors.values()]), "is all zeros, .*; copy"
    ),
    "norms of zeros": Broken(
        with_tensors(lambda tensors: [tensor.zero_() for name, tensor in tensors.items() if "norm" in name]),
        "gives the same to every text or to every token, .*; compare its norms",
        ConversionFailed,
    ),
    "one number everywhere": Broken(
        with_tensors(lambda tensors: [tensor.fill_(0.01) for tensor in tensors.values()]),
        "gives the same to every text or to every token, .*; compare",
        ConversionFailed,
    ),
    "one number that fp16 does not hold": Broken(
        with_tensors(lambda tensors: tensors[DOWN].view(-1)[:1].fill_(7e4)),
        f"'{DOWN}' in .* looks damaged: it holds 7.01e\\+04, the next largest .*; copy",
    ),
    "a missing shard": Broken(
        lambda directory: (directory / SECOND).unlink(), f"has no {SECOND}, which .* names; copy", source="shards"
    ),
    "an index that names a ghost": Broken(
        ghost_in_the_index, "says that 'ghost.weight' is in .*, and it is not; copy", source="shards"
    ),
    "an index that is a pointer": Broken(
        lambda directory: (directory / INDEX).write_text(LFS_POINTER),
        "Git LFS pointer, .*; run 'git lfs",
        source="shards",
    ),
    "a pointer in the place of the weights": Broken(
        overwritten(LFS_POINTER.encode()), "is a Git LFS pointer, not the file itself; run 'git lfs pull'"
    ),
    "a page of the hub in the place of the weights": Broken(
        overwritten(b"<!DOCTYPE html><html>403 Forbidden</html>"), "is no intact safetensors file: .*; copy or save"
    ),
    "an archive in the place of the weights": Broken(
        overwritten(b"PK\x03\x04" + bytes(4000)), "is cut short: .*; copy"
    ),
    "a terabyte that was never written": Broken(
        a_terabyte_of_nothing, "was never written whole: .* of its 1,099,511,.* bytes are on the disk, .*; copy"
    ),
    "more tensors than any model has": Broken(too_many_tensors, "names 100,001 tensors, and no model .*; copy or save"),
    "a pickle alone": Broken(
        lambda directory: (directory / WEIGHTS).rename(directory / "pytorch_model.bin"),
        "has its weights in a pickle .*; load it where you trust it",
        UnsafeCheckpoint,
    ),
    "two sets of weights": Broken(
        lambda directory: shutil.copyfile(directory / FIRST, directory / WEIGHTS),
        "holds two sets of weights, .*; keep the one",
        source="shards",
    ),
}
