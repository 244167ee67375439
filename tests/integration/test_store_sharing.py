"""What artifacts of one checkpoint and its recipes have in common lies in the store once."""

from pathlib import Path

import pytest

from olivepress.store import DirectoryStore, Manifest
from tests.artifacts import run_package
from tests.checkpoints import tiny_checkpoint
from tests.integration.conversion_cases import run_convert

pytestmark = pytest.mark.toolchain


def test_a_second_recipe_of_a_checkpoint_adds_neither_tokenizer_nor_configuration(tmp_path: Path) -> None:
    # given
    checkpoint, store = tiny_checkpoint(tmp_path / "checkpoint", "qwen2"), DirectoryStore(tmp_path / "store")

    def put(recipe: str) -> tuple[Manifest, int]:
        """The package by a recipe, and what it adds to the store."""
        before = store.stats().stored_bytes
        run_convert(checkpoint, recipe, tmp_path / recipe)
        run_package(tmp_path / recipe / "output", tmp_path / f"{recipe}-package")
        manifest = store.put_directory(tmp_path / f"{recipe}-package" / "output")
        return manifest, store.stats().stored_bytes - before

    # when
    first, _ = put("cpu-int4")
    second, added = put("cpu-int8")
    # then all but the model itself was there
    both = {file.path for file in first.files} & {file.path for file in second.files}
    same = {path for path in both if first.file(path).chunks == second.file(path).chunks}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "genai_config.json"} <= same
    assert both - same <= {"model.onnx", "model.onnx.data"}
    assert added <= sum(second.file(path).size_bytes for path in both - same)
