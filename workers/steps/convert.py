"""The step that turns a checkpoint, or an adapter and its base, into an ONNX model directory."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from workers.steps.context import StepContext
from workers.toolchains import adapters, olive, parity

# Shares of the step's time at which its phases end (measured on 494 M parameters).
MERGED, BUILT = 0.15, 0.75


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """Convert; `context.output` then holds the model directory and nothing else.

    Args:
        spec: `path`, `base` (or None), `ingest` (the result of the ingest step), `build` (what
            `Recipe.build_options` gives).

    Returns:
        `parity`, how the model agrees with its source (see `parity.Agreement`), and `notes`, sentences.

    Raises:
        UnsupportedArchitecture: the builder does not know the model.
        ConversionFailed: no model came out, or one that does not say what its source says.
        DiskFull: no room in the workspace.
    """
    source, build = Path(spec["path"]), spec["build"]
    olive.refuse_unsupported(spec["ingest"]["architecture"])
    done = 0.0
    if spec["base"] is not None:
        context.report_progress("merge", done)
        source, done = adapters.merge(source, Path(spec["base"]), context.scratch / "merged"), MERGED
    olive.build(
        source,
        context.output,
        build,
        context.scratch / "olive",
        lambda share: context.report_progress("build", done + (BUILT - done) * share),
    )
    context.report_progress("check", BUILT)
    checked = parity.check(source, context.output, build)
    context.report_progress("check", 1.0)
    return {"parity": asdict(checked.agreement), "notes": checked.notes}
