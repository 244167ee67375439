"""The step that turns a checkpoint, or an adapter and its base, into an ONNX model directory."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from olivepress.checkpoints.files import LET_FINISH, hash_file, unreadable
from olivepress.checkpoints.gguf_folder import gguf_path
from olivepress.errors import CheckpointChanged
from olivepress.recipes.recipe import Precision
from workers.steps.context import StepContext
from workers.toolchains import (
    adapters,
    checkpoint_passes,
    dequantized,
    gguf_expanded,
    notes,
    olive,
    parity,
    unpickled,
)
from workers.toolchains.conversion import Conversion

log = logging.getLogger(__name__)

# Shares of the step's time at which its phases end (measured on 494 M parameters).
MERGED, REWORKED, BUILT = 0.15, 0.5, 0.75
# A spec for whom every number of the checkpoint counts.
IN_FLOAT = {"build": {"precision": Precision.FP32.value}}


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """Convert; `context.output` then holds the model directory and nothing else.

    Args:
        spec: `path`, `base` (or None), `ingest` (the result of the ingest step), `build` (what
            `Recipe.build_options` gives), `recipe_notes` (sentences for the log), `calibration` (entries of the team's
            text for passes of Olive that run before the builder, or None).
        context: where the quantize step came before, inputs {"checkpoint": what it wrote}.

    Returns:
        `parity`, how the model agrees with its source (see `parity.Agreement`), and `notes`, sentences.

    Raises:
        UnsupportedArchitecture: the builder does not know the model.
        NoRoom: it is for an execution provider that no worker builds for.
        BadRecipe: a pass of Olive cannot run here.
        BadManifest: the calibration text cannot be used.
        ConversionFailed: no model came out, or one that does not say what its source says.
        DiskFull: no room in the workspace.
        CheckpointChanged: the files are not the ones that were ingested.
    """
    with notes.collected() as said:
        agreement = _convert(spec, context)
    return {"parity": asdict(agreement), "notes": said}


def _convert(spec: dict[str, Any], context: StepContext) -> parity.Agreement:
    directory, base = Path(spec["path"]), Path(spec["base"]) if spec["base"] else None
    for note in spec.get("recipe_notes", ()):
        log.info("recipe: %s", note)
    olive.refuse_unbuildable(spec["build"], has_calibration=bool(spec.get("calibration")))
    olive.refuse_unsupported(spec["ingest"]["architecture"])
    is_quantized = "checkpoint" in context.inputs
    source, done = (context.inputs["checkpoint"], 0.0) if is_quantized else _source(directory, base, spec, context)
    # What an Olive pass quantized is built from what it stands for, and compared with that; its integers are kept.
    plain, _ = checkpoint_passes.plain_of(source, context.scratch / "widened")
    conversion = Conversion(directory, plain, spec["build"], context.output, context.scratch / "olive", integers=source)
    olive.build(conversion, lambda share: context.report_progress("build", done + (BUILT - done) * share))
    context.report_progress("check", BUILT)
    agreement = parity.check(conversion)
    if not is_quantized:
        # Last: this result is remembered for the content that ingest saw, so that content must have been read.
        refuse_changed(directory, spec["ingest"]["files"])
        if base is not None:
            refuse_changed(base, spec["ingest"]["base"]["files"])
    context.report_progress("check", 1.0)
    return agreement


def _source(directory: Path, base: Path | None, spec: dict[str, Any], context: StepContext) -> tuple[Path, float]:
    """The checkpoint to build from, after the recipe's own passes over it; and the share of the step that is done."""
    source, done = plain_source(directory, base, spec, context)
    passes = (spec["build"].get("olive_passes") or {}).get("before", ())
    if not passes:
        return source, done
    work = checkpoint_passes.Rework(
        checkpoint=directory,
        source=source,
        passes=passes,
        entries=spec["calibration"],
        chat_template=spec["ingest"].get("chat_template"),
        output=context.scratch / "reworked",
        scratch=context.scratch / "rework",
    )
    work.output.mkdir()
    checkpoint_passes.run(work, lambda share: context.report_progress("quantize", done + (REWORKED - done) * share))
    checkpoint_passes.check(work)
    return work.output, REWORKED


def plain_source(directory: Path, base: Path | None, spec: dict[str, Any], context: StepContext) -> tuple[Path, float]:
    """The full checkpoint in floating point to build from, and the share of the step that is done then."""
    # What keeps its numbers in floating point must not lose any of them on the way.
    exact = Precision(spec["build"]["precision"]) in (Precision.FP16, Precision.FP32)
    whole = directory if base is None else base
    if gguf_path(whole):
        whole = gguf_expanded.expanded(whole, context.scratch / "expanded")
    elif _is_pickled(spec["ingest"] if base is None else spec["ingest"]["base"]):
        # Ingest has opened it by the administrator's leave.
        whole = unpickled.unpickled(whole, context.scratch / "unpickled")
    plain = dequantized.plain(whole, context.scratch / "plain", exact=exact)
    if base is None:
        return plain, 0.0
    context.report_progress("merge", 0.0)
    return adapters.merge(directory, plain, context.scratch / "merged", exact=exact), MERGED


def _is_pickled(ingested: dict[str, Any]) -> bool:
    return not any(file["path"].endswith(".safetensors") for file in ingested["files"])


def refuse_changed(directory: Path, files: list[dict[str, Any]]) -> None:
    """Raise CheckpointChanged unless the files are, byte for byte, those that ingest hashed."""
    for file in files:
        path = directory / file["path"]
        try:
            is_same = path.stat().st_size == file["size_bytes"] and hash_file(path) == file["sha256"]
        except OSError as error:
            raise unreadable(path, error) from error
        if not is_same:
            raise CheckpointChanged(f"{path} changed after it was ingested; {LET_FINISH}")
