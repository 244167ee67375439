"""A recipe's own passes of Olive, checked before anything runs."""

import importlib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any, Literal

from olive.common.config_utils import ParamCategory
from olive.constants import DatasetRequirement
from olive.hardware.accelerator import DEFAULT_CPU_ACCELERATOR
from olive.package_config import OlivePackageConfig
from olive.passes import Pass, PassModuleConfig
from packaging.requirements import InvalidRequirement, Requirement
from pydantic import ValidationError

from olivepress.errors import BadRecipe
from olivepress.recipes.recipe import CALIBRATED_PASSES

CPU = DEFAULT_CPU_ACCELERATOR.execution_provider
WorksOn = Literal["checkpoint", "onnx"]
HOMES: dict[WorksOn, str] = {"checkpoint": "olive.passes.pytorch.", "onnx": "olive.passes.onnx."}
# Where the pass's model goes is ours.
EXTERNAL_DATA = "save_as_external_data"
OUTPUT_OPTIONS = frozenset(
    {EXTERNAL_DATA, "all_tensors_to_one_file", "external_data_name", "size_threshold", "convert_attribute"}
)
DATA_ENDS = ("data_config", "dataset", "data_dir")
# Olive says of them that they may read data, and they read none.
DATALESS = frozenset({"quarot"})


def refuse_unrunnable(passes: Iterable[Mapping[str, Any]], on: WorksOn, *, has_calibration: bool) -> None:
    """Raise BadRecipe unless every one of a recipe's passes can run here.

    Args:
        passes: each {"type": name, "config": options}.
        on: what they work on.

    Raises:
        BadRecipe: names the pass and what it lacks: Olive does not know it, a package is missing, it wants data that
            nobody gives, it runs code of the recipe's, an option is unknown or has a wrong value.
    """
    installed = OlivePackageConfig.load_default_config()
    for one in passes:
        found = _installed(installed, one["type"])
        _refuse_elsewhere(one["type"], found, on)
        _refuse_without_packages(one["type"], found, installed.extra_dependencies)
        _refuse_data(one, found, has_calibration=has_calibration)
        _refuse_options(one, _pass_class(one["type"], found))


def _installed(installed: OlivePackageConfig, name: str) -> PassModuleConfig:
    found = installed.passes.get(name.lower())
    if found is None:
        names = sorted(entry.module_path.rpartition(".")[2] for entry in installed.passes.values())
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see Olive's list of passes"
        raise BadRecipe(f"the installed Olive has no pass '{name}'; {hint}")
    return found


def _refuse_elsewhere(name: str, found: PassModuleConfig, on: WorksOn) -> None:
    if CPU not in found.supported_providers:
        offered = ", ".join(sorted(found.supported_providers))
        raise BadRecipe(f"the pass {name} is for {offered}, and models are built for the CPU here; leave it out")
    if found.run_on_target:
        raise BadRecipe(f"the pass {name} measures on the machine that it runs on, and no worker is that; leave it out")
    if not found.module_path.startswith(HOMES[on]):
        other = "after the ModelBuilder" if on == "checkpoint" else "before the ModelBuilder"
        works_on = "the checkpoint" if on == "checkpoint" else "an ONNX model"
        raise BadRecipe(f"the pass {name} does not work on {works_on}; write it {other}, or leave it out")


def _refuse_without_packages(name: str, found: PassModuleConfig, extras: Mapping[str, Iterable[str]]) -> None:
    needed = list(found.module_dependencies)
    for extra in found.extra_dependencies:
        # Some of Olive's extras are the names of packages themselves.
        needed += extras.get(extra, [extra])
    if missing := sorted({package for package in needed if not _is_installed(package)}):
        noun = "the package" if len(missing) == 1 else "the packages"
        raise BadRecipe(
            f"the pass {name} needs {noun} {', '.join(missing)}, not installed on this worker; install it there, or "
            "leave the pass out"
        )


def _is_installed(wanted: str) -> bool:
    try:
        requirement = Requirement(wanted)
        return requirement.specifier.contains(distribution(requirement.name).version, prereleases=True)
    except (InvalidRequirement, PackageNotFoundError):
        return False


def _refuse_data(one: Mapping[str, Any], found: PassModuleConfig, *, has_calibration: bool) -> None:
    name, needs = one["type"], found.dataset
    asked = [key for key, value in one["config"].items() if key.endswith(DATA_ENDS) and value is not None]
    if asked:
        raise BadRecipe(
            f"the pass {name} is to read data ({asked[0]}); data sets of a hub are never fetched, and calibrated "
            "passes read the text that is submitted as 'calibration': leave it out"
        )
    if name.lower() in CALIBRATED_PASSES:
        if not has_calibration:
            raise BadRecipe(
                f"the pass {name} learns from text of the fine-tune's domain; submit some as 'calibration: FILE', or "
                "leave the pass out"
            )
    elif name.lower() == "onnxquantization":
        if one["config"].get("quant_mode", "static") != "dynamic":
            raise BadRecipe(
                "the pass OnnxQuantization needs data for the mode 'static', its default; write quant_mode: dynamic"
            )
    elif needs in (DatasetRequirement.REQUIRED, DatasetRequirement.OPTIONAL) and name.lower() not in DATALESS:
        raise BadRecipe(
            f"the pass {name} needs a data set to calibrate with, and would fetch one from a hub; leave it out, or "
            "quantize the checkpoint with Gptq, which learns from text of your own"
        )


def _pass_class(name: str, found: PassModuleConfig) -> type[Pass]:
    module, _, attribute = found.module_path.rpartition(".")
    try:
        # Not through Olive's package config: it remembers classes for all package configs of a process.
        pass_class: type[Pass] = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        missing = error.name or str(error)
        raise BadRecipe(
            f"the pass {name} needs the package {missing}, not installed on this worker; install it there, or leave "
            "the pass out"
        ) from error
    return pass_class


def _refuse_options(one: Mapping[str, Any], pass_class: type[Pass]) -> None:
    name, given = one["type"], one["config"]
    known = pass_class.default_config(DEFAULT_CPU_ACCELERATOR)
    for key, value in given.items():
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise BadRecipe(
                f"the pass {name} has no option '{key}'; {hint}it has: {', '.join(sorted(set(known) - OUTPUT_OPTIONS))}"
            )
        if value is not None and known[key].category is not ParamCategory.NONE:
            raise BadRecipe(
                f"the option '{key}' of the pass {name} would run or read a file of the machine; leave it out"
            )
        if key in OUTPUT_OPTIONS:
            raise BadRecipe(
                f"the option '{key}' of the pass {name} says where its model goes, which is ours; leave it out"
            )
    if given.get("embeds"):
        raise BadRecipe(
            f"the option 'embeds' of the pass {name} would quantize the embeddings, and the builder reads none that "
            "are; leave it out"
        )
    if missing := [key for key, param in known.items() if param.required and key not in given]:
        raise BadRecipe(f"the pass {name} needs the option '{missing[0]}': {known[missing[0]].description}")
    try:
        config = pass_class.generate_config(DEFAULT_CPU_ACCELERATOR, dict(given), disable_search=True)
        is_possible = pass_class.validate_config(config, DEFAULT_CPU_ACCELERATOR)
    except ValidationError as error:
        # One value is told once for every type that it might have had.
        wrong = {str(item["loc"][0]): item["input"] for item in error.errors() if item["loc"]}
        told = ", ".join(f"{key}: {value!r}" for key, value in wrong.items())
        raise BadRecipe(f"the pass {name} does not take {told}; see Olive's documentation of the pass") from error
    except AttributeError as error:
        # What a check of Olive's does to an option that is not there.
        names = ", ".join(sorted(set(known) - OUTPUT_OPTIONS))
        raise BadRecipe(f"the pass {name} needs an option that is not given; it has: {names}") from error
    except (AssertionError, ValueError, TypeError, KeyError) as error:
        raise BadRecipe(f"the pass {name} does not take these options: {error}") from error
    if not is_possible:
        raise BadRecipe(f"the pass {name} does not take these options together for the CPU; see Olive's documentation")
