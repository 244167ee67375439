"""Runs the convert step by hand, and models in torch and in onnxruntime-genai."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from olivepress.checkpoint_files import hash_file, relevant_files
from olivepress.recipes import Recipe, recipe_named
from workers.steps import convert
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
) -> dict[str, Any]:
    """Convert into `workspace`/output and return the step's result."""
    for name in ("output", "scratch"):
        (workspace / name).mkdir(parents=True)
    context = StepContext(
        output=workspace / "output",
        scratch=workspace / "scratch",
        exclusive_lock=workspace / "lock",
        report_progress=report_progress,
    )
    spec = {
        "path": str(source),
        "base": str(base) if base else None,
        "ingest": {
            "architecture": AutoConfig.from_pretrained(base or source).architectures[0],
            "files": _hashed_files(source),
            "base": {"files": _hashed_files(base)} if base else None,
        },
        "build": (recipe_named(recipe) if isinstance(recipe, str) else recipe).build_options(),
    }
    return convert.run(spec, context)


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
