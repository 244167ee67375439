"""A conversion that goes wrong says so in one sentence, leaves nothing, and writes nowhere else."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from olive.engine.output import WorkflowOutput
from onnxruntime_genai.models import builder
from safetensors.torch import load_file, save_file

from olivepress.errors import CheckpointChanged, ConversionFailed, DiskFull, UnsupportedArchitecture
from olivepress.recipes.recipe import recipe_named
from tests.checkpoints import tiny_checkpoint
from tests.integration.conversion_cases import run_convert
from workers.toolchains import olive, parity
from workers.toolchains.conversion import Conversion

pytestmark = pytest.mark.toolchain

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGING = ("os.mkdir", "os.rename", "os.link", "os.symlink")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "source")


def test_what_olive_swallowed_is_told(source: Path, tmp_path: Path) -> None:
    # given a tensor of the wrong shape: torch raises a RuntimeError, Olive logs it and returns
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"][:-1]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ConversionFailed, match=r"building the int4 model of .*source failed: .*size"):
        run_convert(source, "cpu-int4", tmp_path)
    assert not list((tmp_path / "output").iterdir())


def test_olive_ending_without_error_and_without_model_is_a_failure(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WorkflowOutput, "has_output_model", lambda _: False)

    with pytest.raises(ConversionFailed, match="without an error and without a model"):
        run_convert(source, "cpu-int4", tmp_path)


@pytest.mark.parametrize("lost", ["model.onnx.data", "genai_config.json", "tokenizer.json"])
def test_a_file_that_is_missing_in_the_output_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    create_model = builder.create_model

    def forgetful(*args: Any, output_dir: str, **options: Any) -> None:
        create_model(*args, output_dir=output_dir, **options)
        (Path(output_dir) / lost).write_bytes(b"")

    monkeypatch.setattr(builder, "create_model", forgetful)

    with pytest.raises(ConversionFailed, match=lost):
        run_convert(source, "cpu-int4", tmp_path)


@pytest.mark.parametrize(
    "problem",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError('IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'),
    ],
)
def test_a_full_disk_is_told_as_one(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    def full(**_: Any) -> None:
        raise problem

    monkeypatch.setattr(builder, "create_model", full)

    with pytest.raises(DiskFull, match="no room was left in the workspace"):
        run_convert(source, "cpu-int4", tmp_path)


def test_an_architecture_that_is_not_supported_is_named_with_those_that_are(source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["MixtralForCausalLM"]}))

    with pytest.raises(UnsupportedArchitecture, match=r"MixtralForCausalLM.*Qwen2ForCausalLM"):
        run_convert(source, "cpu-int4", tmp_path)


def test_an_architecture_that_the_builder_itself_refuses_is_told_alike(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["MixtralForCausalLM"]}))
    monkeypatch.setattr(olive, "refuse_unsupported", lambda _: None)

    with pytest.raises(UnsupportedArchitecture, match="the model builder does not know the architecture"):
        run_convert(source, "cpu-int4", tmp_path)


def test_logits_that_are_not_finite_are_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact_logits = parity.artifact_logits

    def with_a_nan(artifact: Path, tokens: list[int]) -> np.ndarray:
        logits = artifact_logits(artifact, tokens)
        logits[3, 5] = np.nan
        return logits

    monkeypatch.setattr(parity, "artifact_logits", with_a_nan)

    with pytest.raises(ConversionFailed, match=r"the int4 model of .* gives logits that are not finite"):
        run_convert(source, "cpu-int4", tmp_path)


@pytest.mark.parametrize("recipe", ["cpu-int4", "cpu-int8", "cpu-fp32"])
def test_a_model_with_one_wrong_matrix_does_not_pass_for_its_source(source: Path, tmp_path: Path, recipe: str) -> None:
    # given a model that was built from other numbers in one matrix of the first layer
    other = shutil.copytree(source, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.layers.0.self_attn.o_proj.weight"] = weights["model.layers.1.self_attn.o_proj.weight"].clone()
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    run_convert(other, recipe, tmp_path)

    build_options = recipe_named(recipe).build_options()
    with pytest.raises(ConversionFailed, match="does not say what its source says"):
        parity.check(Conversion(source, source, build_options, tmp_path / "output", tmp_path / "scratch"))


def test_a_checkpoint_that_changed_after_ingest_gives_no_result(source: Path, tmp_path: Path) -> None:
    def change_it(phase: str, share: float) -> None:
        if phase == "check":
            (source / "config.json").write_text((source / "config.json").read_text() + "\n")

    with pytest.raises(CheckpointChanged, match=r"config\.json changed after it was ingested"):
        run_convert(source, "cpu-fp32", tmp_path, report_progress=change_it)


def test_nothing_is_written_outside_the_workspace(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    workspace = tmp_path / "workspace"

    with _written_paths() as paths:
        run_convert(source, "cpu-int4", workspace)

    inside = (str(workspace), "/dev/null")
    assert [path for path in paths if not path.startswith(inside) and "__pycache__" not in path] == []
    assert len(paths) > 10
    assert not list((tmp_path / "elsewhere").iterdir())


@contextmanager
def _written_paths() -> Iterator[list[str]]:
    """Paths that Python code opens for writing, makes or renames in this block."""
    paths: list[str] = []
    listening = True

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if not listening or not arguments or not isinstance(arguments[0], str | os.PathLike):
            return
        if event in CHANGING or (event == "open" and arguments[2] & WRITING):
            paths.append(str(Path(arguments[0]).absolute()))

    # An audit hook stays until the process ends.
    sys.addaudithook(listen)
    try:
        yield paths
    finally:
        listening = False
