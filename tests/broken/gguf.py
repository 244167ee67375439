"""GGUF files that are damaged, forged, or of a kind that is not read."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from olivepress.checkpoints.gguf_header import read_gguf_header
from olivepress.errors import UnsupportedArchitecture
from tests.broken.breakage import Broken

FILE = "model.gguf"
SOURCE = "gguf"
EMBEDDING, DOWN = "token_embd.weight", "blk.1.ffn_down.weight"
TYPE_PLACE, OFFSET_PLACE = 4 + 2 * 8, 4 + 2 * 8 + 4
TERABYTE = 2**40


def cut(size_bytes: int) -> Callable[[Path], None]:
    """Leave so many bytes, or take so many off."""

    def break_it(directory: Path) -> None:
        content = (directory / FILE).read_bytes()
        (directory / FILE).write_bytes(content[:size_bytes])

    return break_it


def patched(place: int, content: bytes) -> Callable[[Path], None]:
    def break_it(directory: Path) -> None:
        _patch(directory, place, content)

    return break_it


def exchanged(before: bytes, after: bytes) -> Callable[[Path], None]:
    """Write something of the same length in its place."""

    def break_it(directory: Path) -> None:
        content = (directory / FILE).read_bytes()
        if len(before) != len(after) or content.count(before) != 1:
            raise AssertionError(f"{before!r} cannot be exchanged")
        (directory / FILE).write_bytes(content.replace(before, after))

    return break_it


def described(tensor: str, after_name: int, content: bytes) -> Callable[[Path], None]:
    """Change the description of a matrix, so many bytes after its name."""

    def break_it(directory: Path) -> None:
        name = struct.pack("<Q", len(tensor)) + tensor.encode()
        place = (directory / FILE).read_bytes().index(name) + len(name)
        _patch(directory, place + after_name, content)

    return break_it


def text(key: str, value: str) -> bytes:
    return key.encode() + struct.pack("<IQ", 8, len(value)) + value.encode()


def number(key: str, value: int) -> bytes:
    return key.encode() + struct.pack("<II", 4, value)


def scale_of_nothing(directory: Path) -> None:
    _patch(directory, read_gguf_header(directory / FILE).tensors[DOWN].start, b"\x00\x7e")


def a_terabyte_of_nothing(directory: Path) -> None:
    described(EMBEDDING, 4, struct.pack("<QQ", 2**18, 2**20))(directory)
    # Behind all others.
    described(EMBEDDING, OFFSET_PLACE, struct.pack("<Q", 2**20))(directory)
    with (directory / FILE).open("r+b") as file:
        file.truncate(2 * TERABYTE)


def twice(directory: Path) -> None:
    (directory / "model-Q4_K_M.gguf").write_bytes((directory / FILE).read_bytes())


def beside_another_config(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 128}))


def _patch(directory: Path, place: int, content: bytes) -> None:
    with (directory / FILE).open("r+b") as file:
        file.seek(place)
        file.write(content)


TABLE: Mapping[str, Broken] = {
    "GGUF, cut short": Broken(cut(-100), r"is cut short: '.*' ends at byte .*; copy it again", source=SOURCE),
    "GGUF, cut in its header": Broken(cut(1000), "announces more than the 1,000 bytes .*; copy", source=SOURCE),
    "GGUF of nothing": Broken(cut(0), "does not begin with 'GGUF'; copy it again", source=SOURCE),
    "GGUF that is something else": Broken(patched(0, b"GGML"), "does not begin with 'GGUF'; copy", source=SOURCE),
    "GGUF of the future": Broken(patched(4, b"\x63"), "is of version 99, .*; convert it again", source=SOURCE),
    "GGUF for other machines": Broken(
        patched(4, struct.pack(">I", 3)), "for big-endian machines; convert it again", source=SOURCE
    ),
    "GGUF of endless tensors": Broken(
        patched(8, struct.pack("<Q", 2**60)), "announces 1,152,921,504,606,846,976 tensors .*; copy", source=SOURCE
    ),
    "GGUF with a text longer than itself": Broken(
        patched(24, struct.pack("<Q", 2**63)), "announces more than the .* bytes of the file; copy", source=SOURCE
    ),
    "GGUF with a tensor beyond its end": Broken(
        described(DOWN, OFFSET_PLACE, struct.pack("<Q", TERABYTE)), f"cut short: '{DOWN}' ends .*; copy", source=SOURCE
    ),
    "GGUF with tensors over each other": Broken(
        described(DOWN, OFFSET_PLACE, struct.pack("<Q", 0)), "overlaps the tensor before it; copy", source=SOURCE
    ),
    "GGUF of an unknown type": Broken(
        described(DOWN, TYPE_PLACE, b"\x63"), f"'{DOWN}' is of the type 99, .*; save it in F16", source=SOURCE
    ),
    "GGUF of another shape": Broken(
        described(DOWN, 4, struct.pack("<QQ", 64, 128)),
        r"'model.layers.1.mlp.down_proj.weight' .* is 128 × 64, by config.json it would be 64 × 128",
        source=SOURCE,
    ),
    "GGUF of a terabyte of nothing": Broken(
        a_terabyte_of_nothing, "was never written whole: .* the rest is a hole; copy it again", source=SOURCE
    ),
    "GGUF with a scale that is no number": Broken(
        scale_of_nothing, r"'model.layers.1.mlp.down_proj.weight' in .*model\.gguf holds .*NaN.*;", source=SOURCE
    ),
    "GGUF of an unknown architecture": Broken(
        exchanged(text("general.architecture", "llama"), text("general.architecture", "olmo2")),
        "is of the architecture 'olmo2', .*; submit the checkpoint",
        UnsupportedArchitecture,
        source=SOURCE,
    ),
    "GGUF of no model": Broken(
        exchanged(text("general.type", "model"), text("general.type", "vocab")),
        "is no model but of the type 'vocab'; submit the model",
        source=SOURCE,
    ),
    "GGUF of too many layers": Broken(
        exchanged(number("llama.block_count", 2), number("llama.block_count", 3)),
        "lacks 'model.layers.2.input_layernorm.weight'.*; save or copy all of the weights",
        source=SOURCE,
    ),
    "GGUF of no heads": Broken(
        exchanged(number("llama.attention.head_count", 4), number("llama.attention.head_count", 0)),
        "'attention.head_count' is 0; submit the checkpoint",
        source=SOURCE,
    ),
    "GGUF with another's tokenizer": Broken(
        exchanged(text("tokenizer.ggml.pre", "qwen2"), text("tokenizer.ggml.pre", "chatg")),
        r"the tokenizer in .*model\.gguf is of the kind 'gpt2' \(cut as 'chatg'\), .*; put the tokenizer",
        source=SOURCE,
    ),
    "GGUF with a token beyond its vocabulary": Broken(
        exchanged(number("tokenizer.ggml.eos_token_id", 511), number("tokenizer.ggml.eos_token_id", 9999)),
        "its 'eos_token_id' is 9999, and it has 512 tokens; put the tokenizer",
        source=SOURCE,
    ),
    "GGUF with a template that is none": Broken(
        exchanged(b"{% endfor %}", b"{% endfro %}"), r"in .*model\.gguf .*endfro.*;", source=SOURCE
    ),
    "GGUF twice": Broken(twice, r"2 GGUF files \(model-Q4_K_M\.gguf, model\.gguf\); keep the one", source=SOURCE),
    "GGUF in parts": Broken(
        lambda directory: (directory / FILE).rename(directory / "model-00001-of-00003.gguf"),
        "is one part of a model; join its parts",
        source=SOURCE,
    ),
    "GGUF beside another config": Broken(
        beside_another_config, "'hidden_size' is 128 in .*config.json and 64 in model.gguf; put", source=SOURCE
    ),
    "GGUF in a name of capitals": Broken(
        lambda directory: (directory / FILE).rename(directory / "MODEL.GGUF"),
        r"another format \(MODEL\.GGUF\): GGUF, .*; rename it",
        source=SOURCE,
    ),
}
