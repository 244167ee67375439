"""Runs workflows through Olive's Python API, each within one directory; quiet failures become loud."""

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import olive.workflows
from olive.package_config import OlivePackageConfig

from olivepress.errors import ConversionFailed
from workers.toolchains import builder_pass

HF_MODEL, ONNX_MODEL = "hfmodel", "onnxmodel"


@dataclass(frozen=True)
class SavedModel:
    """What a workflow left: Olive's name of its kind, where its model lies, and the files that go with it."""

    kind: str
    path: Path
    onnx_file: Path | None
    beside: tuple[Path, ...]


def run(input_model: Mapping[str, Any], passes: Mapping[str, Any], scratch: Path) -> SavedModel:
    """Run passes over a model; all that Olive writes lies in `scratch`.

    Raises:
        ConversionFailed: Olive ended without an error and without a model.
        Exception: whatever Olive swallowed, as the pass raised it; the caller knows what was being done.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with _swallowed_exceptions() as swallowed, _everything_in(scratch), _passes_left_to_tidy_up():
        outcome = olive.workflows.run(
            _workflow(input_model, passes, scratch), package_config=_package_config(), tempdir=scratch / "tmp"
        )
    if not outcome.has_output_model():
        if swallowed:
            raise swallowed[0]
        names = ", ".join(one["type"] for one in passes.values())
        raise ConversionFailed(
            f"Olive ended without an error and without a model after {names}; the attempt's log has the details; try "
            "another recipe, or leave out a pass of its own"
        )
    return _saved(outcome.get_best_candidate().olive_model_config)


def _saved(written: Mapping[str, Any]) -> SavedModel:
    config = written["config"]
    path = Path(config["model_path"])
    name = config.get("onnx_file_name") or builder_pass.MODEL_FILE
    onnx_file = (path / name if path.is_dir() else path) if written["type"].lower() == ONNX_MODEL else None
    beside = [Path(file) for file in (config.get("model_attributes") or {}).get("additional_files") or ()]
    return SavedModel(
        written["type"].lower(), path, onnx_file, tuple(sorted(file for file in beside if file != onnx_file))
    )


def _workflow(input_model: Mapping[str, Any], passes: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    cpu = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    return {
        "input_model": dict(input_model),
        "systems": {"this_machine": {"type": "LocalSystem", "accelerators": [cpu]}},
        "host": "this_machine",
        "target": "this_machine",
        "passes": dict(passes),
        "evaluate_input_model": False,
        "no_artifacts": True,
        "cache_dir": str(scratch / "cache"),
        "output_dir": str(scratch / "output"),
    }


def _package_config() -> dict[str, Any]:
    """Olive's default list of passes, with our ModelBuilder in the place of its own."""
    config: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text())
    ours = builder_pass.ModelBuilder
    config["passes"]["ModelBuilder"]["module_path"] = f"{ours.__module__}.{ours.__name__}"
    # Olive remembers pass classes by name alone, for all package configs of a process.
    OlivePackageConfig._pass_modules.pop("ModelBuilder", None)
    return config


@contextlib.contextmanager
def _swallowed_exceptions() -> Iterator[list[Exception]]:
    """The exceptions that Olive logs in this block, oldest first; it lets only five types of them out."""
    exceptions: list[Exception] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and isinstance(record.exc_info[1], Exception):
                exceptions.append(record.exc_info[1])

    listener, logger = Listener(), logging.getLogger("olive")
    logger.addHandler(listener)
    try:
        yield exceptions
    finally:
        logger.removeHandler(listener)


@contextlib.contextmanager
def _passes_left_to_tidy_up() -> Iterator[None]:
    # Olive's quantization passes drop their temporary directories without closing them; they lie in our scratch.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Implicitly cleaning up <TemporaryDirectory", ResourceWarning)
        yield


@contextlib.contextmanager
def _everything_in(scratch: Path) -> Iterator[None]:
    """What names no directory is written into `scratch`: by relative path, or as a temporary file."""
    before = tempfile.tempdir
    with contextlib.chdir(scratch):
        try:
            yield
        finally:
            # Olive sets it and leaves it.
            tempfile.tempdir = before
