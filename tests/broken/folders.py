"""Folders that are no checkpoint, or hold what must not be opened."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from olivepress.errors import PathNotAllowed
from tests.broken.breakage import Broken

WEIGHTS = "model.safetensors"
NO_FILE = "is no regular file; replace it with one"


def emptied(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


def holding(**files: bytes) -> Callable[[Path], None]:
    def break_it(directory: Path) -> None:
        emptied(directory)
        for name, content in files.items():
            (directory / name.replace("_dot_", ".")).write_bytes(content)

    return break_it


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def break_it(directory: Path) -> None:
        (directory / name).unlink(missing_ok=True)
        make(directory / name)

    return break_it


def renamed(name: bytes) -> Callable[[Path], Path]:
    def submit(directory: Path) -> Path:
        return directory.rename(os.fsdecode(os.fsencode(directory.parent) + b"/" + name))

    return submit


TABLE: Mapping[str, Broken] = {
    "an empty folder": Broken(emptied, "is empty .*; check whether the training has saved"),
    "a file in the place of a folder": Broken(
        lambda directory: None, "is a file; give the directory", submit=lambda directory: directory / WEIGHTS
    ),
    "a folder that is not there": Broken(
        lambda directory: None, "there is no directory .*; check the path", submit=lambda directory: directory / "gone"
    ),
    "GGUF alone": Broken(
        holding(model_dot_gguf=b"GGUF\3\0\0\0"),
        r"model\.gguf is cut short or damaged: .* the 8 bytes of the file; copy it again",
    ),
    "a converted model": Broken(
        holding(model_dot_onnx=b"\x08\x07", genai_config_dot_json=b"{}", tokenizer_dot_json=b"{}"),
        r"model\.onnx\): ONNX, so it was converted already; submit the Hugging Face checkpoint",
    ),
    "ONNX beside a config": Broken(
        lambda d: (d / WEIGHTS).rename(d / "model.onnx"), "ONNX, so it was converted already; submit the Hugging Face"
    ),
    "its authors' own layout": Broken(
        holding(params_dot_json=b"{}", consolidated_dot_safetensors=b"\2\0\0\0\0\0\0\0{}"),
        "their authors' own layout .*; convert it with its family's script",
    ),
    "a link out of the roots": Broken(
        replaced(WEIGHTS, lambda path: path.symlink_to("/etc/hostname")),
        "is a link that leads out of the allowed directories .*; replace it with the file",
        PathNotAllowed,
    ),
    "a link to itself": Broken(replaced(WEIGHTS, lambda path: path.symlink_to(path)), "a file that is not there; copy"),
    "a pipe in the place of the weights": Broken(replaced(WEIGHTS, os.mkfifo), NO_FILE),
    "a pipe in the place of the config": Broken(replaced("config.json", os.mkfifo), NO_FILE),
    "a pipe in the place of a vocabulary": Broken(replaced("vocab.json", os.mkfifo), NO_FILE),
    "a folder in the place of the tokenizer": Broken(replaced("tokenizer.json", Path.mkdir), NO_FILE),
    "a name that is no text": Broken(
        lambda directory: None, r"a\\udcffb' is no UTF-8 text; rename the folder", submit=renamed(b"a\xffb")
    ),
    "a broken one under a name of two lines": Broken(
        lambda directory: (directory / WEIGHTS).unlink(),
        r"a\\nb has a config but no weights .*; copy",
        submit=renamed(b"a\nb"),
    ),
}
