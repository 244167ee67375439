"""Olive's passes over a converted model: they give another one in the same form, which says the same."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.external_data_helper import convert_model_to_external_data
from transformers import AutoModelForCausalLM

from olivepress.errors import ConversionFailed
from workers.toolchains import olive_workflow, parity, side_by_side
from workers.toolchains.builder_pass import DATA_FILE, MODEL_FILE
from workers.toolchains.conversion import Conversion
from workers.toolchains.failures import told_as_conversion_failure
from workers.toolchains.graph_facts import WHOLE_MATRIX_ROUNDING
from workers.toolchains.parity import Agreement
from workers.toolchains.rounding import Rounding
from workers.toolchains.stored_weights import StoredWeights

log = logging.getLogger(__name__)

FIRST_EXTERNAL_BYTES = 1024
INTEGERS = frozenset({onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.INT8, onnx.TensorProto.UINT8})
WHAT_NOW = "the attempt's log has the details; leave out the recipe's own pass, or change its options"


def run(model: Path, passes: Sequence[Mapping[str, Any]], output: Path, scratch: Path) -> None:
    """Run passes over a model directory; `output` then holds theirs, in the same form.

    Raises:
        ConversionFailed: they gave no ONNX model.
        Exception: whatever a pass raised.
    """
    beside = [file for file in sorted(model.iterdir()) if file.is_file() and not file.name.startswith(MODEL_FILE)]
    handler = {
        "type": "ONNXModel",
        "model_path": str(model),
        "onnx_file_name": MODEL_FILE,
        "model_attributes": {"additional_files": [str(file) for file in beside]},
    }
    ordered = {
        f"pass_{number}": {"type": one["type"], "config": dict(one["config"])} for number, one in enumerate(passes, 1)
    }
    saved = olive_workflow.run(handler, ordered, scratch)
    if saved.onnx_file is None:
        raise ConversionFailed(
            f"the passes made a {saved.kind} of the model, not one ONNX model; leave out the pass that splits it"
        )
    outputs = [value.name for value in onnx.load(model / MODEL_FILE, load_external_data=False).graph.output]
    _gather_weights(saved.onnx_file, output / MODEL_FILE, outputs)
    # A pass may name the old graph's weights among the files that go along.
    written = [file for file in saved.beside if not file.name.startswith(MODEL_FILE)]
    for file in (*beside, *written):
        shutil.copyfile(file, output / file.name)
    shutil.rmtree(scratch)


def check(conversion: Conversion, before: Path) -> Agreement:
    """Compare what passes made of a converted model with that model, and with the source of both.

    Weights are not found by the builder's names after passes, so rounding them is judged by what it moves: the logits
    may leave those of the model before as far as rounding the source's matrices to as many bits makes the source's own.

    Args:
        conversion: its output is what the passes made, its source the checkpoint, its precision the recipe's.
        before: the model directory that the passes worked on, which convert held against the source.

    Returns:
        How the result agrees with the source.

    Raises:
        ConversionFailed: it does not open, gives numbers that are not finite, says something else, or its precision is
            that of integers and it has none.
    """
    if conversion.precision.is_quantized and not _has_integers(conversion.output / MODEL_FILE):
        raise ConversionFailed(
            f"the passes quantized nothing of {conversion.model}: every matrix of it is in floating point; they do not "
            "find those that the builder stores in fp16, so take builder_precision fp32"
        )
    tokens = parity.tokens_of_text(conversion.source)
    with told_as_conversion_failure(f"running {conversion.model} for the first time", WHAT_NOW):
        made, given = (parity.artifact_logits(model, tokens) for model in (conversion.output, before))
    with told_as_conversion_failure(f"running {conversion.checkpoint} in torch", "check that it generates there"):
        model = AutoModelForCausalLM.from_pretrained(conversion.source, dtype="auto").eval()
        with torch.inference_mode():
            seen = side_by_side.compare(model, _stored(conversion.output / MODEL_FILE), tokens, by_name=False)
    if not np.isfinite(made).all():
        raise ConversionFailed(f"{conversion.model} gives logits that are not finite; {WHAT_NOW}")
    moved = 1 - parity.agreement(given, made).correlation
    allowed = parity.ARITHMETIC + parity.TIMES_ROUNDED_INPUTS * (
        1 - parity.agreement(seen.stored, seen.jittered).correlation
    )
    allowed += parity.TIMES_UNPLACED * (1 - parity.agreement(seen.source, seen.stored).correlation)
    log.info("against the model before the passes, 1 - correlation is %.2g; it may be %.2g", moved, allowed)
    if not moved <= allowed:
        raise ConversionFailed(
            f"{conversion.model} does not say what its source says: against the model before the passes, its logits "
            f"correlate by {1 - moved:.6f}, {1 - allowed:.6f} is asked; {WHAT_NOW}"
        )
    found = parity.agreement(seen.source, made)
    log.info("%s", found)
    return found


def _gather_weights(source: Path, target: Path, outputs: Sequence[str]) -> None:
    """Write the model at `source` to `target`, its weights in one file beside it, as the builder does.

    A pass may have left them in the graph's own file, or under another name.

    Args:
        outputs: what the graph's outputs were called before the passes.
    """
    model = onnx.load(str(source))
    _restore_outputs(model.graph, outputs)
    convert_model_to_external_data(model, location=DATA_FILE, size_threshold=FIRST_EXTERNAL_BYTES)
    # Its release number would be a second place for what the toolchain's fingerprint holds.
    del model.metadata_props[:]
    onnx.save_model(model, str(target))


def _restore_outputs(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Olive 0.13's OnnxBlockWiseRtnQuantization calls the logits otherwise, and no runtime finds them."""
    made = [value.name for value in graph.output]
    lost, new = ([name for name in some if name not in others] for some, others in ((names, made), (made, names)))
    if len(lost) != len(new):
        return
    renamed = dict(zip(new, lost, strict=True))
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [renamed.get(value, value) for value in values]
    for value in graph.output:
        value.name = renamed.get(value.name, value.name)


class _RoundedAsAWhole(StoredWeights):
    """Weights of a model whose matrices have one scale each, or one a column, and whose inputs have one for all tokens.

    Measured on trained models: that moves the logits a tenth more than four times what 8 bits for each row would, and
    a twentieth of what 4 bits for blocks of 128 do.
    """

    @property
    def rounding(self) -> Rounding:
        return Rounding(bits=4, block_size=128, is_symmetric=True)


def _stored(model_file: Path) -> StoredWeights:
    graph = onnx.load(model_file, load_external_data=False).graph
    is_whole = any(node.op_type in WHOLE_MATRIX_ROUNDING for node in graph.node)
    return (_RoundedAsAWhole if is_whole else StoredWeights)(model_file)


def _has_integers(model_file: Path) -> bool:
    graph = onnx.load(model_file, load_external_data=False).graph
    return any(tensor.data_type in INTEGERS and len(tensor.dims) > 1 for tensor in graph.initializer)
