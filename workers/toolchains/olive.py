"""A checkpoint becomes an onnxruntime-genai model directory: the model builder, run by Olive."""

import gc
import inspect
import re
import shutil
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

import onnx
from onnxruntime_genai.models import builder
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from olivepress.checkpoints.known_architectures import BUILT_WRONGLY
from olivepress.errors import ConversionFailed, NoRoom, UnsupportedArchitecture
from olivepress.recipes.recipe import Algorithm, ExecutionProvider, Precision
from workers.toolchains import builder_pass, kept_integers, mends, olive_passes, olive_workflow
from workers.toolchains.build_progress import reporting
from workers.toolchains.conversion import Conversion
from workers.toolchains.failures import told_as_conversion_failure
from workers.toolchains.olive_workflow import SavedModel

BUILDER_PRECISION = {Precision.INT4: "int4", Precision.INT8: "int8", Precision.FP16: "fp16", Precision.FP32: "fp32"}
BUILDER_ALGORITHM = {Algorithm.DEFAULT: "default", Algorithm.RTN: "rtn", Algorithm.K_QUANT: "k_quant"}
WHAT_NOW = "the attempt's log has the details; try another recipe, or compare config.json with the base model's"


@cache
def supported_architectures() -> list[str]:
    """Architectures (as in config.json) that the builder turns into text models on the CPU, sorted.

    Read from the builder's own dispatch, so that a new version brings its new ones; nothing is built.
    """
    dispatched = re.findall(r'architectures\[0\] == "(\w+ForCausalLM)"', inspect.getsource(builder.create_model))
    loadable = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return sorted(set(dispatched) & loadable - BUILT_WRONGLY.keys())


def refuse_unsupported(architecture: str) -> None:
    """Raise UnsupportedArchitecture, with the names of those that would do, unless the builder knows this one."""
    if architecture not in supported_architectures():
        raise UnsupportedArchitecture(
            f"the architecture {architecture} cannot be converted; these can: {', '.join(supported_architectures())}"
        )


def refuse_unbuildable(options: Mapping[str, Any], *, has_calibration: bool = False) -> None:
    """Raise unless this worker can build, and check, what a recipe's build or quantize options ask for.

    Raises:
        NoRoom: they are for another execution provider.
        BadRecipe: a pass of Olive cannot run here.
    """
    provider = ExecutionProvider(options["execution_provider"])
    if provider is not ExecutionProvider.CPU:
        raise NoRoom(
            f"no worker builds models for {provider}: one that does must be able to run them, and workers of this "
            "release run them on the CPU; take a recipe whose execution_provider is cpu"
        )
    passes = (options.get("olive_passes") or {}).get("before", ())
    olive_passes.refuse_unrunnable(passes, "checkpoint", has_calibration=has_calibration)


def build(conversion: Conversion, report: Callable[[float], None]) -> None:
    """Build the model directory of a full checkpoint; `report` is called with the share that is done, 0 to 1.

    Afterwards the conversion's output holds the model's files and nothing else, and its scratch is gone.

    Raises:
        UnsupportedArchitecture: the builder does not know the model.
        ConversionFailed: Olive gave no model, or one with files missing.
        DiskFull: no room in the scratch or the output.
    """
    report(0.0)
    with told_as_conversion_failure(f"building {conversion.model}", WHAT_NOW):
        _take_over(_built(conversion, report), conversion)
        # Olive's cache holds a second copy of the weights on disk, the builder's graph, in cycles, one in memory.
        shutil.rmtree(conversion.scratch)
        gc.collect()
    _refuse_incomplete(conversion)
    _refuse_unknown_nodes(conversion)


def _refuse_unknown_nodes(conversion: Conversion) -> None:
    """The builder passes over a node to exclude that the graph does not have, and quantizes what was meant."""
    wanted = conversion.options.get("nodes_to_exclude", ())
    if not wanted:
        return
    graph = onnx.load(conversion.output / builder_pass.MODEL_FILE, load_external_data=False).graph
    matrices = [node.name for node in graph.node if node.op_type == "MatMul"]
    if unknown := [name for name in wanted if name not in matrices]:
        # "/model/layers.0/mlp/down_proj/MatMul_Q4"
        known = [re.sub(r"_Q\d+$", "", node.name) for node in graph.node if node.op_type.startswith("MatMul")]
        near = get_close_matches(unknown[0], known, n=3, cutoff=0.3)
        raise ConversionFailed(
            f"nodes_to_exclude names {unknown[0]}, which {conversion.model} does not have as a matrix of its own; "
            f"names of its graph are: {', '.join(near or known[:3])}"
        )


def _built(conversion: Conversion, report: Callable[[float], None]) -> SavedModel:
    """What the model builder wrote."""
    builder_options = {
        "type": "ModelBuilder",
        "precision": BUILDER_PRECISION[conversion.precision],
        "extra_options": _builder_options(conversion),
        "builder_cache": str(conversion.scratch / "builder"),
    }
    source = {"type": "HfModel", "model_path": str(conversion.source)}
    integers = conversion.integers if conversion.precision.is_quantized else None
    try:
        with mends.builder_mended(), reporting(report), kept_integers.keeping(integers):
            return olive_workflow.run(source, {"build": builder_options}, conversion.scratch)
    except NotImplementedError as problem:
        if "model is not currently supported" not in str(problem):
            raise
        raise UnsupportedArchitecture(
            f"the model builder does not know the architecture that the config.json of {conversion.checkpoint} names; "
            f"these can be converted: {', '.join(supported_architectures())}"
        ) from problem


def _take_over(saved: SavedModel, conversion: Conversion) -> None:
    """Bring what the builder made into the conversion's output."""
    for name in (builder_pass.MODEL_FILE, builder_pass.DATA_FILE):
        shutil.move(saved.path / name if saved.path.is_dir() else saved.path.with_name(name), conversion.output / name)
    for file in saved.beside:
        shutil.move(file, conversion.output / file.name)


def _builder_options(conversion: Conversion) -> dict[str, str]:
    """The recipe's build options in the model builder's own words, KEY to VALUE."""
    # A cache cut to the window makes generation fail some tokens after the window is full.
    words, options = {"windowed_kv_cache": "false"}, conversion.options
    if conversion.precision not in (Precision.INT4, Precision.INT8):
        return words
    words |= {
        "block_size": str(options["block_size"]),
        "is_symmetric": str(options["is_symmetric"]).lower(),
        "algo_config": BUILDER_ALGORITHM[Algorithm(options["algorithm"])],
        "accuracy_level": str(options["accuracy_level"]),
    }
    if options["mixed_precision"]:
        words["matmul_mixed_precision"] = options["mixed_precision"]
    if options.get("nodes_to_exclude"):
        words["nodes_to_exclude"] = ",".join(options["nodes_to_exclude"])
    return words


def _refuse_incomplete(conversion: Conversion) -> None:
    required = ("genai_config.json", builder_pass.MODEL_FILE, builder_pass.DATA_FILE, "tokenizer.json")
    paths = [conversion.output / name for name in required]
    if missing := [path.name for path in paths if not path.is_file() or not path.stat().st_size]:
        raise ConversionFailed(
            f"Olive ended without an error while building {conversion.model}, yet {', '.join(missing)} is missing or "
            f"empty; {WHAT_NOW}"
        )
