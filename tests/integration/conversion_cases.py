"""Runs the convert and quantize steps by hand, and models in torch and in onnxruntime-genai."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from olivepress.checkpoints.files import hash_file, relevant_files
from olivepress.recipes.recipe import Recipe, recipe_named
from workers.steps import convert, quantize
from workers.steps.context import StepContext

# What was imported is no garbage: the collection in each conversion need not walk it (half of a tiny one's time).
gc.freeze()

TOKENS = list(range(40, 72))
MODEL_FILES = {
    "chat_template.jinja",
    "genai_config.json",
    "model.onnx",
    "model.onnx.data",
    "tokenizer.json",
    "tokenizer_config.json",
}


def run_convert(
    source: Path,
    recipe: str | Recipe,
    workspace: Path,
    base: Path | None = None,
    report_progress: Callable[[str, float], None] = lambda phase, share: None,
    **more: Any,
) -> dict[str, Any]:
    """Convert into `workspace`/output and return the step's result.

    Args:
        more: `inputs` of the step, and `calibration`.
    """
    context = _context(workspace, report_progress, more.get("inputs"))
    return convert.run(_spec(source, recipe, base, more.get("calibration")), context)


def run_quantize(
    source: Path, recipe: Recipe, workspace: Path, base: Path | None = None, **more: Any
) -> dict[str, Any]:
    """Quantize into `workspace`/output and return the step's result; `more` as for `run_convert`."""
    spec = _spec(source, recipe, base, more.get("calibration"))
    spec |= {"quantize": recipe.quantize_options(), "on": recipe.quantizes}
    context = _context(workspace, more.get("report_progress", lambda phase, share: None), more.get("inputs"))
    return quantize.run(spec, context)


def run_recipe(
    source: Path, recipe: Recipe, workspace: Path, calibration: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The steps that a recipe takes up to its model, which lies in `workspace`/output; the last one's result."""
    first = workspace / "first"
    if recipe.quantizes == "checkpoint":
        run_quantize(source, recipe, first, calibration=calibration)
        return run_convert(source, recipe, workspace, inputs={"checkpoint": first / "output"})
    if recipe.quantizes == "onnx":
        run_convert(source, recipe, first, calibration=calibration)
        return run_quantize(source, recipe, workspace, inputs={"artifact": first / "output"})
    return run_convert(source, recipe, workspace, calibration=calibration)


def _context(
    workspace: Path, report_progress: Callable[[str, float], None], inputs: dict[str, Path] | None
) -> StepContext:
    for name in ("output", "scratch"):
        (workspace / name).mkdir(parents=True)
    return StepContext(
        output=workspace / "output",
        scratch=workspace / "scratch",
        exclusive_lock=workspace / "lock",
        inputs=inputs or {},
        report_progress=report_progress,
    )


def _spec(
    source: Path, recipe: str | Recipe, base: Path | None, calibration: list[dict[str, Any]] | None
) -> dict[str, Any]:
    return {
        "path": str(source),
        "base": str(base) if base else None,
        "ingest": {
            "architecture": AutoConfig.from_pretrained(base or source).architectures[0],
            "files": _hashed_files(source),
            "base": {"files": _hashed_files(base)} if base else None,
        },
        "build": (recipe_named(recipe) if isinstance(recipe, str) else recipe).build_options(),
        "calibration": calibration,
    }


def _hashed_files(directory: Path) -> list[dict[str, Any]]:
    files = relevant_files(directory)
    return [{"path": file.name, "size_bytes": file.stat().st_size, "sha256": hash_file(file)} for file in files]


def in_torch(checkpoint: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def logits_in_torch(model: torch.nn.Module, tokens: list[int] = TOKENS) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(model(input_ids=torch.tensor([tokens])).logits[0].numpy())


def logits_in_runtime(artifact: Path, tokens: list[int] = TOKENS) -> np.ndarray:
    generator = _generator(onnxruntime_genai.Model(str(artifact)), len(tokens) + 1)
    generator.append_tokens(np.array([tokens], dtype=np.int32))
    return np.array(generator.get_output("logits"))[0]


def greedy_in_torch(model: PreTrainedModel, count: int) -> list[int]:
    """The next `count` tokens after TOKENS; generation goes on after an end-of-text token."""
    tokens = list(TOKENS)
    for _ in range(count):
        tokens.append(int(logits_in_torch(model, tokens)[-1].argmax()))
    return tokens[len(TOKENS) :]


def greedy_in_runtime(artifact: Path, count: int) -> list[int]:
    """As `greedy_in_torch`, token by token with the runtime's own cache."""
    generator = _generator(onnxruntime_genai.Model(str(artifact)), len(TOKENS) + count + 1)
    generator.append_tokens(np.array([TOKENS], dtype=np.int32))
    tokens = []
    for _ in range(count):
        tokens.append(int(np.array(generator.get_output("logits"))[0, -1].argmax()))
        generator.append_tokens(np.array([tokens[-1:]], dtype=np.int32))
    return tokens


def _generator(model: Any, max_length: int) -> Any:
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=max_length, do_sample=False)
    return onnxruntime_genai.Generator(model, parameters)
