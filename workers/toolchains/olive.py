"""A checkpoint becomes an onnxruntime-genai model directory through Olive's Python API; quiet failures become loud."""

import contextlib
import gc
import inspect
import json
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import olive.workflows
import onnx
from olive.package_config import OlivePackageConfig
from onnxruntime_genai.models import builder
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from olivepress.errors import ConversionFailed, NoRoom, UnsupportedArchitecture
from olivepress.known_architectures import BUILT_WRONGLY
from olivepress.recipes import Algorithm, ExecutionProvider, Precision
from workers.toolchains import builder_pass, mends, olive_passes
from workers.toolchains.build_progress import reporting
from workers.toolchains.conversion import Conversion
from workers.toolchains.failures import explained, told_as_conversion_failure

BUILDER_PRECISION = {Precision.INT4: "int4", Precision.INT8: "int8", Precision.FP16: "fp16", Precision.FP32: "fp32"}
BUILDER_ALGORITHM = {Algorithm.DEFAULT: "default", Algorithm.RTN: "rtn", Algorithm.K_QUANT: "k_quant"}
WHAT_NOW = "the attempt's log has the details; try another recipe, or compare config.json with the base model's"

WHAT_NOW_WITH_PASSES = "the attempt's log has the details; leave out the recipe's own pass that fails, or change it"


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


def refuse_unbuildable(options: Mapping[str, Any]) -> None:
    """Raise unless this worker can build, and check, what a recipe's build options ask for.

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
    olive_passes.refuse_unrunnable(options)


def build(conversion: Conversion, report: Callable[[float], None]) -> None:
    """Build the model directory of a full checkpoint; `report` is called with the share that is done, 0 to 1.

    Afterwards the conversion's output holds the model's files and nothing else, and its scratch is gone.

    Raises:
        UnsupportedArchitecture: the builder does not know the model.
        ConversionFailed: Olive gave no model, or one with files missing.
        DiskFull: no room in the scratch or the output.
    """
    report(0.0)
    what_now = WHAT_NOW_WITH_PASSES if conversion.options.get("olive_passes") else WHAT_NOW
    with told_as_conversion_failure(f"building {conversion.model}", what_now), _passes_left_to_tidy_up():
        built, beside = _run_olive(conversion, report)
        _take_over(built, beside, conversion)
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


def _run_olive(conversion: Conversion, report: Callable[[float], None]) -> tuple[Path, list[Path]]:
    """The ONNX file that Olive saved, and the other files of the model directory but its weights."""
    scratch = conversion.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    with _swallowed_exceptions() as swallowed, _everything_in(scratch), mends.builder_mended(), reporting(report):
        outcome = olive.workflows.run(_workflow(conversion), package_config=_package_config(), tempdir=scratch / "tmp")
    if not outcome.has_output_model():
        _raise_cause(swallowed, conversion)
    saved = outcome.get_best_candidate().olive_model_config
    if saved["type"].lower() != "onnxmodel":
        raise ConversionFailed(
            f"the passes made a {saved['type']} of {conversion.model}, which is not one ONNX model; leave out the pass "
            "that splits it"
        )
    config = saved["config"]
    path = Path(config["model_path"])
    model_file = path / (config.get("onnx_file_name") or builder_pass.MODEL_FILE) if path.is_dir() else path
    beside = [Path(file) for file in (config.get("model_attributes") or {}).get("additional_files") or ()]
    return model_file, [file for file in beside if file != model_file]


def _take_over(model_file: Path, beside: list[Path], conversion: Conversion) -> None:
    """Bring what Olive made into the conversion's output, under the builder's own names."""
    output = conversion.output
    if conversion.options.get("olive_passes", {}).get("after"):
        olive_passes.gather_weights(model_file, output / builder_pass.MODEL_FILE, builder_pass.DATA_FILE)
    else:
        for name in (builder_pass.MODEL_FILE, builder_pass.DATA_FILE):
            shutil.move(model_file.with_name(name), output / name)
    for file in sorted(beside):
        # A pass may name the old graph's weights among the files that go along.
        if not file.name.startswith(builder_pass.MODEL_FILE):
            shutil.move(file, output / file.name)


def _workflow(conversion: Conversion) -> dict[str, Any]:
    scratch = conversion.scratch
    cpu = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    return {
        "input_model": {"type": "HfModel", "model_path": str(conversion.source)},
        "systems": {"this_machine": {"type": "LocalSystem", "accelerators": [cpu]}},
        "host": "this_machine",
        "target": "this_machine",
        "passes": olive_passes.workflow_passes(
            conversion.options,
            {
                "type": "ModelBuilder",
                "precision": BUILDER_PRECISION[conversion.precision],
                "extra_options": _builder_options(conversion),
                "builder_cache": str(scratch / "builder"),
            },
        ),
        "evaluate_input_model": False,
        "no_artifacts": True,
        "cache_dir": str(scratch / "cache"),
        "output_dir": str(scratch / "output"),
    }


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


def _package_config() -> dict[str, Any]:
    """Olive's default list of passes, with our ModelBuilder in the place of its own."""
    config: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text())
    ours = builder_pass.ModelBuilder
    config["passes"]["ModelBuilder"]["module_path"] = f"{ours.__module__}.{ours.__name__}"
    # Olive remembers pass classes by name alone, for all package configs of a process.
    OlivePackageConfig._pass_modules.pop("ModelBuilder", None)
    return config


@contextlib.contextmanager
def _swallowed_exceptions() -> Iterator[list[Exception]]:
    """The exceptions that Olive logs in this block, oldest first; it lets only five types of them out."""
    exceptions: list[Exception] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and isinstance(record.exc_info[1], Exception):
                exceptions.append(record.exc_info[1])

    listener, logger = Listener(), logging.getLogger("olive")
    logger.addHandler(listener)
    try:
        yield exceptions
    finally:
        logger.removeHandler(listener)


@contextlib.contextmanager
def _passes_left_to_tidy_up() -> Iterator[None]:
    # Olive's quantization passes drop their temporary directories without closing them; they lie in our scratch.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Implicitly cleaning up <TemporaryDirectory", ResourceWarning)
        yield


@contextlib.contextmanager
def _everything_in(scratch: Path) -> Iterator[None]:
    """What names no directory is written into `scratch`: by relative path, or as a temporary file."""
    before = tempfile.tempdir
    with contextlib.chdir(scratch):
        try:
            yield
        finally:
            # Olive sets it and leaves it.
            tempfile.tempdir = before


def _raise_cause(swallowed: list[Exception], conversion: Conversion) -> None:
    if not swallowed:
        raise ConversionFailed(
            f"Olive ended without an error and without a model while building {conversion.model}; {WHAT_NOW}"
        )
    cause = swallowed[0]
    if isinstance(cause, NotImplementedError) and "model is not currently supported" in str(cause):
        raise UnsupportedArchitecture(
            f"the model builder does not know the architecture that the config.json of {conversion.checkpoint} names; "
            f"these can be converted: {', '.join(supported_architectures())}"
        ) from cause
    what_now = WHAT_NOW_WITH_PASSES if conversion.options.get("olive_passes") else WHAT_NOW
    raise explained(cause, f"building {conversion.model}", what_now) from cause


def _refuse_incomplete(conversion: Conversion) -> None:
    required = ("genai_config.json", builder_pass.MODEL_FILE, builder_pass.DATA_FILE, "tokenizer.json")
    paths = [conversion.output / name for name in required]
    if missing := [path.name for path in paths if not path.is_file() or not path.stat().st_size]:
        raise ConversionFailed(
            f"Olive ended without an error while building {conversion.model}, yet {', '.join(missing)} is missing or "
            f"empty; {WHAT_NOW}"
        )
