"""Olive's passes over a checkpoint: it becomes another one, quantized or made ready for it, that says the same.

A calibrated pass moves weights further than rounding would, so the result is not held against its source row by row.
Its next-token distribution is: it may differ as far as rounding the same matrices to the nearest level makes it.
"""

import gc
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from olive.passes.pytorch.autoclip import AutoClip
from olive.passes.pytorch.gptq import Gptq
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from olivepress.checkpoints.files import CONFIG, WEIGHTS_INDEX, read_json, relevant_files
from olivepress.errors import ConversionFailed
from olivepress.recipes.recipe import CALIBRATED_PASSES
from workers.toolchains import calibration, dequantized, olive_format, olive_workflow, parity
from workers.toolchains.failures import told_as_conversion_failure
from workers.toolchains.parity import Agreement
from workers.toolchains.replaced import replaced
from workers.toolchains.rounding import Rounding, rounded
from workers.toolchains.side_by_side import Logits

log = logging.getLogger(__name__)

# What 1 - correlation with the source may be, in times what rounding to the nearest level makes of it. Measured on
# random and trained models, with text of the domain and text of another: calibrated passes need 0.3 to 1.5 times.
TIMES_ROUNDED = 4.0
# Where a pass leaves no integers, as those that only prepare for rounding: what it is held against.
USUAL = Rounding(bits=4, block_size=32, is_symmetric=False)
# Models of one dtype differ in the last bit by how they were merged or rotated.
ARITHMETIC = 1e-5
WHAT_NOW = "the attempt's log has the details; leave out the recipe's own pass that fails, or change it"
INDEX_METADATA: dict[str, Any] = {"metadata": {}}


@dataclass(frozen=True)
class Rework:
    """One checkpoint to be reworked.

    `checkpoint` is what was submitted, for messages; `source` the full one in floating point that is worked on.
    `passes` are Olive's, each {"type", "config"}; `entries` the team's calibration text, `chat_template` the template
    it is written with where the checkpoint has two. `output` is an empty directory, `scratch` one for the rest.
    """

    checkpoint: Path
    source: Path
    passes: Sequence[Mapping[str, Any]]
    entries: Sequence[Mapping[str, Any]] | None
    chat_template: str | None
    output: Path
    scratch: Path

    @property
    def names(self) -> str:
        """The passes, for messages."""
        return ", ".join(one["type"] for one in self.passes)


def run(work: Rework, report: Callable[[float], None]) -> None:
    """Run the passes; the output then is a checkpoint in the Hugging Face layout.

    Args:
        report: called with the share that is done, 0 to 1.

    Raises:
        BadManifest: the calibration text cannot be used.
        ConversionFailed: Olive gave no checkpoint, or one with files missing.
        DiskFull: no room in the scratch or the output.
    """
    report(0.0)
    with told_as_conversion_failure(f"running {work.names} over {work.checkpoint}", WHAT_NOW), _reporting(work, report):
        work.scratch.mkdir(parents=True, exist_ok=True)
        # In fp32: the scales that a pass finds are then not rounded to the source's 16 bits.
        model = {"type": "HfModel", "model_path": str(work.source), "load_kwargs": {"torch_dtype": "float32"}}
        saved = olive_workflow.run(model, _passes(work), work.scratch / "olive")
        if saved.kind != olive_workflow.HF_MODEL or not (saved.path / CONFIG).is_file():
            raise ConversionFailed(
                f"{work.names} made no checkpoint of {work.checkpoint} but a {saved.kind}; leave out the last pass"
            )
        _take_over(saved.path, work)
        # A second copy of the weights on disk; the reference cycles of the model, one in memory.
        shutil.rmtree(work.scratch / "olive")
        gc.collect()


def check(work: Rework) -> Agreement:
    """Compare what a rework wrote with its source, in torch.

    Raises:
        ConversionFailed: it does not load, gives numbers that are not finite, or says something else.
    """
    with told_as_conversion_failure(f"running what {work.names} made of {work.checkpoint}", WHAT_NOW):
        tokens = parity.tokens_of_text(work.source)
        plain, roundings = plain_of(work.output, work.scratch / "widened")
        reworked = parity.model_logits(_loaded(plain), tokens)
        source = _loaded(work.source)
        wanted = parity.model_logits(source, tokens)
        nearest = parity.model_logits(_round(source, roundings), tokens)
        if plain != work.output:
            shutil.rmtree(plain)
    found = parity.agreement(wanted, reworked)
    allowed = ARITHMETIC + TIMES_ROUNDED * (1 - parity.agreement(wanted, nearest).correlation)
    log.info("%s; 1 - correlation is %.2g, it may be %.2g", found, 1 - found.correlation, allowed)
    _refuse_other_function(work, reworked, found, allowed)
    return found


def plain_of(directory: Path, into: Path) -> tuple[Path, dict[str, Rounding]]:
    """The checkpoint in floating point that `directory` stands for, itself or in `into`; how matrices were rounded."""
    if quantization := olive_format.read_olive_quantization(directory):
        return into, olive_format.widen(directory, quantization, into)
    return dequantized.plain(directory, into, exact=True), {}


def _refuse_other_function(work: Rework, reworked: Logits, found: Agreement, allowed: float) -> None:
    if not np.isfinite(reworked).all():
        raise ConversionFailed(
            f"what {work.names} made of {work.checkpoint} gives numbers that are not finite; {WHAT_NOW}"
        )
    if not 1 - found.correlation <= allowed:
        raise ConversionFailed(
            f"what {work.names} made of {work.checkpoint} does not say what its source says: their logits correlate by "
            f"{found.correlation:.4f}, {1 - allowed:.4f} is asked, and {found.top1:.0%} of the next tokens agree; "
            "give more calibration text of the fine-tune's domain, or take smaller groups or more bits"
        )


def _passes(work: Rework) -> dict[str, dict[str, Any]]:
    data: dict[str, Any] | None = None
    if any(one["type"].lower() in CALIBRATED_PASSES for one in work.passes):
        windows = calibration.tokenized(work.entries or (), work.source, work.chat_template)
        data = calibration.data_config(windows, work.scratch / "calibration.json")
    passes = {}
    for number, one in enumerate(work.passes, 1):
        config = dict(one["config"])
        if one["type"].lower() in CALIBRATED_PASSES:
            config["data_config"] = data
        passes[f"pass_{number}"] = {"type": one["type"], "config": config}
    return passes


def _reporting(work: Rework, report: Callable[[float], None]) -> Any:
    """Counts the matrices that the calibrated passes have done; they tell nobody else."""
    layers = int(read_json(work.source / CONFIG).get("num_hidden_layers") or 1)
    # A guess at how many there are: seven in a layer of nearly all architectures.
    of = max(1, 7 * layers * sum(one["type"].lower() in CALIBRATED_PASSES for one in work.passes))
    done = 0

    def counted(process: Callable[..., None]) -> Callable[..., None]:
        def process_and_count(*arguments: Any, **options: Any) -> None:
            nonlocal done
            process(*arguments, **options)
            done += 1
            report(min(done / of, 1.0))

        return process_and_count

    clip = AutoClip.__dict__["process_module"].__func__
    return replaced(
        (Gptq, "process_module", staticmethod(counted(Gptq.process_module))),
        (AutoClip, "process_module", classmethod(counted(clip))),
    )


def _take_over(saved: Path, work: Rework) -> None:
    """Bring the checkpoint into the output: with the source's own tokenizer, unchanged weights in their own dtype."""
    for file in relevant_files(work.source):
        if file.suffix != ".safetensors" and file.name not in (CONFIG, WEIGHTS_INDEX):
            target = work.output / file.relative_to(work.source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    dtypes = _dtypes(work.source)
    weight_map: dict[str, str] = {}
    for shard in sorted(saved.glob("*.safetensors")):
        tensors = {name: _narrowed(tensor, dtypes.get(name)) for name, tensor in load_file(shard).items()}
        save_file(tensors, work.output / shard.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard.name)
    if not weight_map:
        raise ConversionFailed(f"{work.names} left no weights of {work.checkpoint}; {WHAT_NOW}")
    if len(set(weight_map.values())) > 1:
        (work.output / WEIGHTS_INDEX).write_text(
            json.dumps(INDEX_METADATA | {"weight_map": weight_map}, sort_keys=True)
        )
    config = read_json(saved / CONFIG)
    config.pop("_name_or_path", None)
    (work.output / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _dtypes(source: Path) -> dict[str, torch.dtype]:
    found: dict[str, torch.dtype] = {}
    for file in source.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            found |= {name: opened.get_slice(name)[:0].dtype for name in names if opened.get_slice(name).get_shape()}
    return found


def _narrowed(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """The tensor in its source's dtype, where that holds every number of it."""
    if dtype is None or tensor.dtype == dtype or not tensor.is_floating_point():
        return tensor
    narrow = tensor.to(dtype)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def _loaded(directory: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()
    return model


def _round(model: PreTrainedModel, roundings: Mapping[str, Rounding]) -> PreTrainedModel:
    """The model with these matrices rounded to the nearest level; where none is named, all inside of the layers."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        rounding = roundings.get(name) if roundings else USUAL
        if rounding and isinstance(module, torch.nn.Linear) and (roundings or module is not head):
            weight = module.weight.data
            module.weight = torch.nn.Parameter(rounded(weight.float().clone(), rounding).to(weight.dtype), False)
    return model
