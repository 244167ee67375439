"""The real Foundry Local lists and runs what is installed, and no longer what is uninstalled."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from olivepress.cli.install import register_by_sdk
from olivepress.errors import BadArtifact, RuntimeCrashed
from olivepress.foundry import index as foundry_index
from olivepress.foundry import runtime as foundry_runtime
from olivepress.foundry.cache import install_into_cache, installed_numbers, uninstall_from_cache
from olivepress.foundry.inference_model import inference_model_json, scan_rules, sums_text
from olivepress.foundry.runtime import chat
from olivepress.recipes.recipe import FoundrySettings
from tests.artifacts import converted

pytestmark = pytest.mark.toolchain
NAME = "tiny-int4"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted tiny model; not to be changed."""
    return converted(tmp_path_factory.mktemp("model"))


def published(model: Path, directory: Path, number: int) -> Path:
    """The model as publish leaves it."""
    shutil.copytree(model, directory)
    content = inference_model_json(
        model=NAME, number=number, description="", prompt_template=None, foundry=FoundrySettings()
    )
    (directory / "inference_model.json").write_text(json.dumps(content))
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}
    (directory / "SHA256SUMS").write_text(sums_text(sums))
    return directory


def entries(cache: Path) -> dict[str, dict[str, object]]:
    index = json.loads((cache / foundry_index.INDEX_FILE).read_text())
    return {entry["model_info"]["id"]: entry for entry in index["models"]}


def test_versions_that_the_sdk_registers_are_listed_and_run_until_they_are_uninstalled(
    model: Path, tmp_path: Path
) -> None:
    # given
    cache = tmp_path / "cache"
    for number in (1, 2):
        source = published(model, tmp_path / f"source-{number}", number)
        install_into_cache(source, cache, NAME, number, register=register_by_sdk)
    # then both ways of discovery know them
    assert set(entries(cache)) == set(scan_rules(cache).directories) == {f"{NAME}:1", f"{NAME}:2"}
    assert installed_numbers(cache, NAME) == [1, 2]
    # when
    uninstall_from_cache(cache, NAME, 1)
    # then
    (exchange,) = chat(cache, f"{NAME}:2", ["Hello"], max_tokens=8)
    assert exchange.question == "Hello"
    with pytest.raises(BadArtifact, match=f"lists no model {NAME}:1"):
        chat(cache, f"{NAME}:1", ["Hello"], max_tokens=8)
    assert set(scan_rules(cache).directories) == {f"{NAME}:2"}


def test_the_entry_of_the_sdk_is_the_one_that_is_written_without_it(model: Path, tmp_path: Path) -> None:
    source = published(model, tmp_path / "source", 1)
    with_sdk, without = tmp_path / "with", tmp_path / "without"

    install_into_cache(source, with_sdk, NAME, 1, register=foundry_runtime.register)
    install_into_cache(source, without, NAME, 1)

    assert shape(entries(with_sdk)) == shape(entries(without))


def shape(value: object) -> object:
    """The keys and kinds of a JSON value: times and paths differ."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return type(value).__name__


def test_where_the_sdk_declines_the_index_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeCrashed("told to")

    monkeypatch.setattr(foundry_runtime, "register", crash)
    cache = tmp_path / "cache"

    install_into_cache(published(model, tmp_path / "source", 1), cache, NAME, 1, register=register_by_sdk)

    assert set(entries(cache)) == {f"{NAME}:1"}
