"""Makes tiny converted models for tests, with the builder itself: what the convert step hands to package."""

import contextlib
import io
import json
import warnings
from pathlib import Path

from onnxruntime_genai.models import builder

from tests.checkpoints import tiny_checkpoint


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
    """Set keys of a JSON object in a file; "a.b" is b inside a, and None as a string, "<absent>", removes the key."""
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
