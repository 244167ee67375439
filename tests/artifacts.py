"""Makes tiny converted models for tests, with the builder itself, and runs the steps after convert on them."""

import contextlib
import io
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnxruntime_genai.models import builder

from olivepress.recipes.recipe import FoundrySettings, GateLimits
from tests.checkpoints import tiny_checkpoint
from workers.steps import package, validate
from workers.steps.context import StepContext


def converted(directory: Path, architecture: str = "qwen2", *, precision: str = "int4") -> Path:
    """Make a tiny random checkpoint and its ONNX model; returns the model's directory."""
    checkpoint = tiny_checkpoint(directory / "checkpoint", architecture)
    output = directory / "converted"
    arguments = ("", str(checkpoint), str(output), precision, "cpu", str(directory / "cache"))
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        # torch and onnx warn about themselves; what they build is the point here.
        warnings.simplefilter("ignore")
        builder.create_model(*arguments, **builder.parse_extra_options(*arguments, []))
    return output


def rewrite_json(path: Path, **changes: object) -> None:
    """Set keys of the JSON object in a file: `a__b` is b inside a; the value "<absent>" removes the key."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *outer, last = key.split("__")
        place = content
        for name in outer:
            place = place[name]
        if value == "<absent>":
            del place[last]
        else:
            place[last] = value
    path.write_text(json.dumps(content))


def step_context(directory: Path, artifact: Path, **more: Any) -> StepContext:
    """A context for a step whose one input is this artifact."""
    for name in ("output", "scratch"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    inputs = {"artifact": artifact}
    return StepContext(directory / "output", directory / "scratch", directory / "host.lock", inputs, **more)


def run_package(artifact: Path, directory: Path, *, context_length: int = 4096, **foundry: float) -> dict[str, Any]:
    """Run the package step; the package is `directory`/output."""
    spec = {"foundry": asdict(FoundrySettings(**foundry)), "context_length": context_length, "family": "qwen2"}
    return package.run(spec, step_context(directory, artifact))


def run_validate(artifact: Path, directory: Path, *prompts: dict[str, Any], **gates: Any) -> dict[str, Any]:
    """Run the validate step with these domain prompts and limits."""
    spec = {
        "prompts": list(prompts),
        "gates": asdict(GateLimits(**gates)),
        "name": "certify-0123",
        "source_size_bytes": 123,
    }
    return validate.run(spec, step_context(directory, artifact))


def bytes_of(directory: Path) -> dict[str, bytes]:
    """Relative path → content of every file."""
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}
