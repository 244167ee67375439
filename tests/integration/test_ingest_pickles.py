"""Weights in a pickle are opened only where an administrator allows it, and nothing in them is run."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from olivepress.checkpoints.files import hash_file
from olivepress.errors import BadCheckpoint, UnsafeCheckpoint
from olivepress.recipes.recipe import recipe_named
from olivepress.steps import ingest_key
from tests.checkpoints import tiny_adapter, tiny_checkpoint
from tests.integration.conversion_cases import in_torch, logits_in_runtime, logits_in_torch
from tests.integration.ingest_cases import edit_json
from workers.steps import convert, ingest
from workers.steps.context import StepContext

pytestmark = pytest.mark.toolchain

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "plain", dtype=torch.float32)


@pytest.fixture
def pickled(source: Path, tmp_path: Path) -> Path:
    """The checkpoint with its weights, the tied head among them, in pytorch_model.bin."""
    directory = shutil.copytree(source, tmp_path / "pickled")
    tensors = _tensors(directory)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    torch.save(tensors, directory / "pytorch_model.bin")
    return Path(directory)


def test_it_is_refused_unless_an_administrator_allows_it(pickled: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpoint, match=r"pickle \(pytorch_model\.bin\).*OLIVEPRESS_ALLOW_PICKLE=true"):
        _ingest(pickled, tmp_path, allow_pickle=False)


def test_where_it_is_allowed_the_model_is_the_same(source: Path, pickled: Path, tmp_path: Path) -> None:
    ingested = _ingest(pickled, tmp_path)
    _convert(pickled, ingested, tmp_path)

    hashes = {file["path"]: file["sha256"] for file in ingested["files"]}
    assert hashes["pytorch_model.bin"] == hash_file(pickled / "pytorch_model.bin")
    assert not any(name.endswith(".safetensors") for name in hashes)
    wanted = logits_in_torch(in_torch(source))
    np.testing.assert_allclose(logits_in_runtime(tmp_path / "output"), wanted, atol=1e-3)


def test_several_parts_and_their_index_are_read(pickled: Path, tmp_path: Path) -> None:
    tensors = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    (pickled / "pytorch_model.bin").unlink()
    names = sorted(tensors)
    weight_map = {name: f"pytorch_model-{1 + place % 2:05d}-of-00002.bin" for place, name in enumerate(names)}
    for part in set(weight_map.values()):
        torch.save({name: tensors[name] for name in names if weight_map[name] == part}, pickled / part)
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))

    ingested = _ingest(pickled, tmp_path)

    assert {file["path"] for file in ingested["files"]} >= {*weight_map.values(), "pytorch_model.bin.index.json"}


def test_a_pickled_base_of_an_adapter_is_read_too(source: Path, pickled: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "adapter", source)

    ingested = _ingest(adapter, tmp_path, base=pickled)
    _convert(adapter, ingested, tmp_path, base=pickled)

    assert ingested["base_path"] == str(pickled)
    assert (tmp_path / "output" / "model.onnx").is_file()


def test_code_in_it_is_not_run(pickled: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": Payload()}, protocol=2))

    with pytest.raises(UnsafeCheckpoint, match=r"pickled/pytorch_model\.bin holds more than tensors"):
        _ingest(pickled, tmp_path)

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param([torch.ones(2)], "holds no table of tensors", id="a list"),
        pytest.param({"model.norm.weight": 3.5}, "holds no table of tensors", id="a number"),
        pytest.param({"model.norm.weight": torch.ones(64)}, "promises 2 layers", id="one tensor only"),
    ],
)
def test_what_is_no_model_is_refused_by_the_name_of_the_submitted_folder(
    pickled: Path, tmp_path: Path, content: object, complaint: str
) -> None:
    torch.save(content, pickled / "pytorch_model.bin")

    with pytest.raises(BadCheckpoint, match=complaint) as refusal:
        _ingest(pickled, tmp_path)

    assert str(pickled) in str(refusal.value)
    assert "scratch" not in str(refusal.value)


def test_a_damaged_file_is_told_as_one(pickled: Path, tmp_path: Path) -> None:
    whole = (pickled / "pytorch_model.bin").read_bytes()
    (pickled / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(BadCheckpoint, match=r"pytorch_model\.bin is damaged"):
        _ingest(pickled, tmp_path)


def test_nan_in_it_is_found(pickled: Path, tmp_path: Path) -> None:
    tensors = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    tensors["model.norm.weight"][3] = torch.nan
    torch.save(tensors, pickled / "pytorch_model.bin")

    with pytest.raises(BadCheckpoint, match=r"'model\.norm\.weight' .* holds 1 NaN"):
        _ingest(pickled, tmp_path)


def test_safetensors_beside_it_are_what_counts(source: Path, tmp_path: Path) -> None:
    both = Path(shutil.copytree(source, tmp_path / "both"))
    (both / "pytorch_model.bin").write_bytes(b"anything")

    ingested = _ingest(both, tmp_path)

    assert ingested["checkpoint_digest"] == _ingest(source, tmp_path)["checkpoint_digest"]


def test_an_index_that_leads_elsewhere_is_refused(pickled: Path, tmp_path: Path) -> None:
    (pickled / "pytorch_model.bin.index.json").write_text("{}")
    edit_json(pickled / "pytorch_model.bin.index.json", weight_map={"model.norm.weight": "../other.bin"})

    with pytest.raises(BadCheckpoint, match=r"names '\.\./other\.bin', which is no file beside it"):
        _ingest(pickled, tmp_path)


def test_what_was_opened_by_leave_is_not_remembered_without_it() -> None:
    open_to_all, closed = ({"roots": ["/models"], **more} for more in ({"allow_pickle": True}, {}))

    assert ingest_key("identity", open_to_all, "toolchain") != ingest_key("identity", closed, "toolchain")


def _tensors(directory: Path) -> Tensors:
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    return tensors


def _ingest(path: Path, root: Path, *, base: Path | None = None, allow_pickle: bool = True) -> dict[str, Any]:
    scratch = root / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    roots = [str(folder.parent) for folder in (path, base) if folder]
    spec = {"path": str(path), "base": base and str(base), "roots": roots, "allow_pickle": allow_pickle}
    return ingest.run(spec, StepContext(root / "out", scratch, root / "lock"))


def _convert(path: Path, ingested: dict[str, Any], root: Path, base: Path | None = None) -> None:
    (root / "output").mkdir()
    shutil.rmtree(root / "scratch")
    (root / "scratch").mkdir()
    build = recipe_named("cpu-fp32").build_options()
    spec = {"path": str(path), "base": base and str(base), "ingest": ingested, "build": build}
    convert.run(spec, StepContext(root / "output", root / "scratch", root / "lock"))
