"""The step that runs a recipe's own passes of Olive: on the converted model, or on the checkpoint before it."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workers.steps.context import StepContext
from workers.steps.convert import IN_FLOAT, plain_source, refuse_changed
from workers.toolchains import checkpoint_passes, olive, olive_passes, onnx_passes
from workers.toolchains.conversion import Conversion
from workers.toolchains.failures import told_as_conversion_failure
from workers.toolchains.parity import Agreement

log = logging.getLogger(__name__)

# The share of the step's time at which its comparison starts.
QUANTIZED = 0.8
WHAT_NOW = "the attempt's log has the details; leave out the recipe's own pass that fails, or change it"


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """Quantize; `context.output` then holds a model directory, or a checkpoint that convert goes on with.

    Args:
        spec: `path`, `base` (or None), `ingest` (the result of the ingest step), `on` ("onnx" or "checkpoint"),
            `quantize` (what `Recipe.quantize_options` gives), `build` (`Recipe.build_options`), `calibration` (entries
            of the team's text, or None), `recipe_notes` (sentences for the log).
        context: for "onnx" inputs {"artifact": what convert wrote}.

    Returns:
        `parity`, how the result agrees with the source (see `parity.Agreement`), and `notes`, sentences.

    Raises:
        NoRoom: it is for an execution provider that no worker builds for.
        BadRecipe: a pass of Olive cannot run here.
        BadManifest: the calibration text cannot be used.
        ConversionFailed: no model came out, or one that does not say what its source says.
        DiskFull: no room in the workspace.
        CheckpointChanged: the files are not the ones that were ingested.
    """
    directory, base = Path(spec["path"]), Path(spec["base"]) if spec["base"] else None
    for note in spec.get("recipe_notes", ()):
        log.info("recipe: %s", note)
    options = spec["quantize"]
    olive.refuse_unbuildable(options)
    olive_passes.refuse_unrunnable(options["passes"], spec["on"], has_calibration=bool(spec["calibration"]))
    quantize = _quantize_checkpoint if spec["on"] == "checkpoint" else _quantize_onnx
    agreement = quantize(directory, base, spec, context)
    # Last: this result is remembered for the content that ingest saw, so that content must have been read.
    refuse_changed(directory, spec["ingest"]["files"])
    if base is not None:
        refuse_changed(base, spec["ingest"]["base"]["files"])
    context.report_progress("check", 1.0)
    return {"parity": asdict(agreement), "notes": []}


def _quantize_checkpoint(directory: Path, base: Path | None, spec: dict[str, Any], context: StepContext) -> Agreement:
    # What a pass learns from must be what was trained, not what 16 bits would make of a merged adapter.
    source, done = plain_source(directory, base, spec | IN_FLOAT, context)
    work = checkpoint_passes.Rework(
        checkpoint=directory,
        source=source,
        passes=spec["quantize"]["passes"],
        entries=spec["calibration"],
        chat_template=spec["ingest"].get("chat_template"),
        output=context.output,
        scratch=context.scratch / "rework",
    )
    checkpoint_passes.run(work, lambda share: context.report_progress("quantize", done + (QUANTIZED - done) * share))
    context.report_progress("check", QUANTIZED)
    return checkpoint_passes.check(work)


def _quantize_onnx(directory: Path, base: Path | None, spec: dict[str, Any], context: StepContext) -> Agreement:
    options, before, scratch = spec["quantize"], context.inputs["artifact"], context.scratch / "olive"
    names = ", ".join(one["type"] for one in options["passes"])
    context.report_progress("quantize", 0.0)
    with told_as_conversion_failure(f"running {names} over the converted model of {directory}", WHAT_NOW):
        onnx_passes.run(before, options["passes"], context.output, scratch)
    context.report_progress("check", QUANTIZED)
    source, _ = plain_source(directory, base, spec, context)
    return onnx_passes.check(Conversion(directory, source, options, context.output, scratch), before)
