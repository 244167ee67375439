"""Runs ingest on a folder and breaks checkpoints on purpose; the sound ones are made once for a module."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import tiny_adapter, tiny_checkpoint
from workers.steps import ingest
from workers.steps.context import StepContext

DOWN = "model.layers.1.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound checkpoints, made once; tests break copies of them."""
    root = tmp_path_factory.mktemp("sound")
    base = tiny_checkpoint(root / "qwen2")
    tiny_checkpoint(root / "llama", "llama", tied=False, dtype=torch.float16)
    tiny_checkpoint(root / "fp32", dtype=torch.float32, shards=2)
    tiny_adapter(root / "lora", base)
    return root


@pytest.fixture
def copy_of(sound: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of the sound checkpoints, to be broken."""
    return lambda name: shutil.copytree(sound / name, tmp_path / name)


def run(path: Path, base: Path | None = None, roots: list[Path] | None = None, **hooks: Any) -> dict[str, Any]:
    context = StepContext(path.parent / "out", path.parent / "scratch", path.parent / "lock", **hooks)
    spec = {
        "path": str(path),
        "base": str(base) if base else None,
        "roots": [str(root) for root in roots or [path.parent, *([base.parent] if base else [])]],
    }
    result = ingest.run(spec, context)
    assert json.loads(json.dumps(result)) == result
    return result


def edit_json(path: Path, **values: Any) -> None:
    changed = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not ...}))


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None], name: str = "model") -> None:
    path = directory / f"{name}.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata={"format": "pt"})


def with_number(number: float, tensor: str = DOWN) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[tensor][3, 5] = number

    return lambda directory: edit_weights(directory, change)


def renamed(rename: Callable[[str], str]) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[rename(name)] = tensors.pop(name)

    return lambda directory: edit_weights(directory, change)


def add_token(directory: Path, content: str, number: int) -> None:
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": number, "content": content})
    path.write_text(json.dumps(tokenizer))


def set_config(**values: Any) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / "config.json", **values)
