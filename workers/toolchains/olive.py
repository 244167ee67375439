"""A checkpoint becomes an onnxruntime-genai model directory through Olive's Python API; quiet failures become loud."""

import contextlib
import gc
import inspect
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import olive.workflows
from olive.package_config import OlivePackageConfig
from onnxruntime_genai.models import builder
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from olivepress.errors import ConversionFailed, UnsupportedArchitecture
from olivepress.recipes import Algorithm, Precision
from workers.toolchains import builder_pass, mends
from workers.toolchains.build_progress import reporting
from workers.toolchains.conversion import Conversion
from workers.toolchains.failures import explained, told_as_conversion_failure

BUILDER_PRECISION = {Precision.INT4: "int4", Precision.INT8: "int8", Precision.FP32: "fp32"}
BUILDER_ALGORITHM = {Algorithm.DEFAULT: "default", Algorithm.RTN: "rtn"}
# What the builder takes and transformers loads as a language model, and yet: models that answer wrongly (measured
# against torch in fp32: OLMo, Granite's hybrid) or that it does not quantize from plain weights (gpt-oss).
NOT_TRUSTED = ("OlmoForCausalLM", "GraniteMoeHybridForCausalLM", "GptOssForCausalLM")
WHAT_NOW = "the attempt's log has the details; try another recipe, or compare config.json with the base model's"


@cache
def supported_architectures() -> list[str]:
    """Architectures (as in config.json) that the builder turns into text models on the CPU, sorted.

    Read from the builder's own dispatch, so that a new version brings its new ones; nothing is built.
    """
    dispatched = re.findall(r'architectures\[0\] == "(\w+ForCausalLM)"', inspect.getsource(builder.create_model))
    loadable = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return sorted(set(dispatched) & loadable - set(NOT_TRUSTED))


def refuse_unsupported(architecture: str) -> None:
    """Raise UnsupportedArchitecture, with the names of those that would do, unless the builder knows this one."""
    if architecture not in supported_architectures():
        raise UnsupportedArchitecture(
            f"the architecture {architecture} cannot be converted; these can: {', '.join(supported_architectures())}"
        )


def build(conversion: Conversion, report: Callable[[float], None]) -> None:
    """Build the model directory of a full checkpoint; `report` is called with the share that is done, 0 to 1.

    Afterwards the conversion's output holds the model's files and nothing else, and its scratch is gone.

    Raises:
        UnsupportedArchitecture: the builder does not know the model.
        ConversionFailed: Olive gave no model, or one with files missing.
        DiskFull: no room in the scratch or the output.
    """
    if conversion.precision not in BUILDER_PRECISION:
        known = ", ".join(BUILDER_PRECISION)
        raise ConversionFailed(f"{conversion.model} cannot be built for the CPU; choose a recipe of {known}")
    report(0.0)
    with told_as_conversion_failure(f"building {conversion.model}", WHAT_NOW):
        built, names = _run_olive(conversion, report)
        for name in sorted(names):
            shutil.move(built / name, conversion.output / name)
        # Olive's cache holds a second copy of the weights on disk, the builder's graph, in cycles, one in memory.
        shutil.rmtree(conversion.scratch)
        gc.collect()
    _refuse_incomplete(conversion)


def _run_olive(conversion: Conversion, report: Callable[[float], None]) -> tuple[Path, set[str]]:
    """The directory that Olive saved the model to, and the names of the files there that belong to the model."""
    scratch = conversion.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    with _swallowed_exceptions() as swallowed, _everything_in(scratch), mends.builder_mended(), reporting(report):
        outcome = olive.workflows.run(_workflow(conversion), package_config=_package_config(), tempdir=scratch / "tmp")
    if not outcome.has_output_model():
        _raise_cause(swallowed, conversion)
    saved = outcome.get_best_candidate().olive_model_config["config"]
    beside = {Path(path).name for path in saved["model_attributes"]["additional_files"]}
    return Path(saved["model_path"]), {builder_pass.MODEL_FILE, builder_pass.DATA_FILE} | beside


def _workflow(conversion: Conversion) -> dict[str, Any]:
    scratch = conversion.scratch
    cpu = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    return {
        "input_model": {"type": "HfModel", "model_path": str(conversion.source)},
        "systems": {"this_machine": {"type": "LocalSystem", "accelerators": [cpu]}},
        "host": "this_machine",
        "target": "this_machine",
        "passes": {
            "build": {
                "type": "ModelBuilder",
                "precision": BUILDER_PRECISION[conversion.precision],
                "extra_options": _builder_options(conversion),
                "builder_cache": str(scratch / "builder"),
            }
        },
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
    raise explained(cause, f"building {conversion.model}", WHAT_NOW) from cause


def _refuse_incomplete(conversion: Conversion) -> None:
    required = ("genai_config.json", builder_pass.MODEL_FILE, builder_pass.DATA_FILE, "tokenizer.json")
    paths = [conversion.output / name for name in required]
    if missing := [path.name for path in paths if not path.is_file() or not path.stat().st_size]:
        raise ConversionFailed(
            f"Olive ended without an error while building {conversion.model}, yet {', '.join(missing)} is missing or "
            f"empty; {WHAT_NOW}"
        )
