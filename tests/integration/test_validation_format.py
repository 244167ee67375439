"""Files of a model directory that are missing or contradict each other are named before anything is measured."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from olivepress.errors import BadArtifact
from tests.artifacts import converted, rewrite_json, run_package
from workers.measures.format import check_format

pytestmark = pytest.mark.toolchain


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package; not to be changed."""
    directory = tmp_path_factory.mktemp("packaged")
    run_package(converted(directory / "model"), directory / "package")
    return directory / "package" / "output"


@pytest.fixture
def package_copy(packaged: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(packaged, tmp_path / "package"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "genai_config.json").unlink(), "has no genai_config.json"),
        (lambda d: (d / "genai_config.json").write_text("{"), "genai_config.json is not valid JSON"),
        (lambda d: rewrite_json(d / "genai_config.json", model__vocab_size=600), "512 logits .* vocabulary of 600"),
        (lambda d: rewrite_json(d / "genai_config.json", model__decoder__num_hidden_layers=3), "2 layers .* has 3"),
        (lambda d: rewrite_json(d / "genai_config.json", model__decoder__num_key_value_heads=4), "2 heads .* has 4"),
        (lambda d: rewrite_json(d / "genai_config.json", model__eos_token_id=[511, 512]), "token 512"),
        (lambda d: rewrite_json(d / "genai_config.json", search__max_length=5000), "5000 tokens in a context of 4096"),
        (lambda d: (d / "model.onnx").unlink(), "has no model.onnx"),
        (lambda d: (d / "model.onnx").write_bytes(b"no graph"), "no ONNX model"),
        (lambda d: (d / "model.onnx.data").unlink(), "has no model.onnx.data"),
        (lambda d: os.truncate(d / "model.onnx.data", 1000), "ends at 1000 bytes and the graph reads"),
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda d: rewrite_json(d / "tokenizer.json", model__vocab={"far": 700}), "token 700 and the model only 512"),
        (lambda d: rewrite_json(d / "tokenizer_config.json", tokenizer_class="<absent>"), "names no tokenizer_class"),
        (lambda d: (d / "chat_template.jinja").write_text("other"), "different chat templates"),
    ],
)
def test_files_that_are_missing_or_disagree_are_named(
    package_copy: Path, damage: Callable[[Path], None], words: str
) -> None:
    check_format(package_copy)

    damage(package_copy)

    with pytest.raises(BadArtifact, match=words):
        check_format(package_copy)


def test_weights_that_are_a_link_out_of_the_directory_are_refused(package_copy: Path, tmp_path: Path) -> None:
    (package_copy / "model.onnx.data").rename(tmp_path / "elsewhere.data")
    (package_copy / "model.onnx.data").symlink_to(tmp_path / "elsewhere.data")

    with pytest.raises(BadArtifact, match="a link to a file outside"):
        check_format(package_copy)
