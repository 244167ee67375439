"""An Olive workflow file becomes a recipe: translated, with a note for each translation, or refused by key. Pure.

The checkpoint that goes in and the directory that comes out are ours, and so is where it runs; the passes are theirs.
A file whose only pass is the model builder becomes a recipe like any other, so that equal recipes share conversions.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from olivepress.errors import BadRecipe
from olivepress.json_values import why_not_kept
from olivepress.recipes.files import mistakes, parse_recipe
from olivepress.recipes.olive_builder_options import read_builder
from olivepress.recipes.olive_catalog import precision_left
from olivepress.recipes.olive_reading import Options, Reading, options_of
from olivepress.recipes.recipe import CALIBRATED_PASSES, ExecutionProvider, Precision, Recipe

Json = Mapping[str, Any]

BUILDER = "modelbuilder"
TASKS = ("text-generation", "text-generation-with-past")
PROVIDER_NAMES = {
    "CPUExecutionProvider": ExecutionProvider.CPU,
    "CUDAExecutionProvider": ExecutionProvider.CUDA,
    "DmlExecutionProvider": ExecutionProvider.DML,
    "WebGpuExecutionProvider": ExecutionProvider.WEBGPU,
}
PROVIDERS = {name.lower(): provider for name, provider in PROVIDER_NAMES.items()}
BESIDE_PASS = ("type", "host", "evaluator", "disable_search", "clean_run_cache")
# Where Olive works and how much it says: every attempt has its own places and its own log.
OURS = (
    "cache_dir",
    "clean_cache",
    "clean_evaluation_cache",
    "evaluate_input_model",
    "log_severity_level",
    "log_to_file",
    "no_artifacts",
    "ort_log_severity_level",
    "ort_py_log_severity_level",
    "output_dir",
    "output_name",
    "workflow_id",
)
REFUSED = {
    "auto_optimizer_config": "lets Olive choose the passes; write them under passes",
    "azureml_client": "would use a service elsewhere; leave it out",
    "cache_config": "would share a cache; every attempt has a cache of its own, so leave it out",
    "data_configs": "would give passes data; what they learn from is submitted as 'calibration: FILE', so leave it out",
    "enable_shared_cache": "would share a cache; every attempt has a cache of its own, so leave it out",
    "evaluator": "would measure in Olive; gates and validation do that here, so leave it out",
    "evaluators": "would measure in Olive; gates and validation do that here, so leave it out",
    "packaging_config": "would pack the result in Olive; `olivepress install` hands models out, so leave it out",
    "plot_pareto_frontier": "belongs to a search; a recipe is one point, so leave it out",
    "search_strategy": "asks for a search; a recipe is one point, so leave it out and submit one file for each point",
}


def recipe_of_workflow(workflow: Any, source: str = "olive_config") -> Recipe:
    """The recipe that an Olive workflow asks for; its `notes` say what was translated and what is ours.

    Args:
        workflow: the content of the JSON or YAML file.
        source: how messages call it.

    Raises:
        BadRecipe: names every key that cannot be translated, by its path.
    """
    if not isinstance(workflow, Mapping):
        raise BadRecipe(f"{source} holds no workflow; it needs 'input_model' and 'passes'")
    if wrong := why_not_kept(workflow):
        raise BadRecipe(f"{source}: {' '.join(wrong)}")
    read = Reading()
    values = _flattened(workflow, read)
    for key, value in values.items():
        _read_key(read, key, value)
    _read_systems(read, values)
    _read_passes(read, values.get("passes"))
    if not read.mistakes:
        read.mistakes += [read.in_their_words(found) for found in mistakes(read.keys)]
    if read.mistakes:
        raise BadRecipe(f"{source}: {'; '.join(str(mistake) for mistake in read.mistakes[:5])}")
    recipe = parse_recipe(read.keys, source)
    return replace(recipe, name=f"olive-{recipe.name}", notes=tuple(read.notes))


def input_path(workflow: Json) -> str | None:
    """The path of the model that the file itself names, which is not read."""
    model = workflow.get("input_model")
    if not isinstance(model, Mapping):
        return None
    inner = model.get("config")
    path = (inner if isinstance(inner, Mapping) else model).get("model_path", model.get("model_path"))
    return path if isinstance(path, str) else None


def _flattened(workflow: Json, read: Reading) -> dict[str, Any]:
    """The keys of the file, with those of the older `engine` mapping among them."""
    values = dict(workflow)
    engine = values.pop("engine", None) or {}
    if not isinstance(engine, Mapping):
        read.refuse("engine", "is no mapping; leave it out")
        return values
    values |= dict(engine)
    systems, providers = values.get("systems") or {}, values.pop("execution_providers", None)
    if providers is not None and isinstance(systems, Mapping):
        # Older files name them there; beside systems that name others they are one too many.
        values["systems"] = {**systems, "engine": {"accelerators": [{"execution_providers": providers}]}}
    return values


def _read_key(read: Reading, key: str, value: Any) -> None:
    if key in OURS:
        if key == "output_dir":
            read.note("output_dir: the model goes into the store, not into the directory that the file names")
    elif key in REFUSED:
        if value:
            read.refuse(key, REFUSED[key])
    elif key == "input_model":
        _read_input_model(read, value)
    elif key not in ("passes", "systems", "host", "target", "$schema"):
        read.refuse(key, "is no key of a workflow that is known here; leave it out")


def _read_input_model(read: Reading, value: Any) -> None:
    model = options_of(read, "input_model", value, ("type",))
    if model is None:
        return
    if str(model.pop("type")).lower() != "hfmodel":
        read.refuse("input_model.type", "is not HfModel; only checkpoints in the Hugging Face layout are converted")
    for key, inner, place in model:
        if key == "model_path":
            read.note(f"{place}: the checkpoint is the one that was submitted, not the path in the file")
        elif key == "task":
            if inner not in TASKS:
                read.refuse(place, f"is {inner!r}; only models for {TASKS[0]} are converted")
        elif key == "adapter_path" and inner:
            read.refuse(place, "names an adapter; submit the adapter's directory, with its base (--base DIR)")
        elif key == "load_kwargs" and isinstance(inner, Mapping):
            for name, setting in inner.items():
                if setting:
                    read.refuse(f"{place}.{name}", _why_no_load_option(name))
        elif inner:
            read.refuse(place, "cannot be translated; leave it out")


def _why_no_load_option(name: str) -> str:
    if name == "trust_remote_code":
        return "would run code from the checkpoint, which is never done; leave it out"
    return "cannot be translated; the checkpoint is loaded as its own config.json says, so leave it out"


def _read_systems(read: Reading, values: Json) -> None:
    """The execution provider; all else about where Olive runs is ours."""
    systems = values.get("systems") or {}
    if not isinstance(systems, Mapping):
        return read.refuse("systems", "is no mapping of names to systems; leave it out")
    named = [values[key] for key in ("target", "host") if values.get(key)]
    found: dict[ExecutionProvider, str] = {}
    for name, system in [*systems.items(), *(("target", one) for one in named if isinstance(one, Mapping))]:
        place = f"systems.{name}" if name in systems else str(name)
        for provider in _providers(read, place, system):
            found.setdefault(provider, place)
    for key in ("target", "host"):
        name = values.get(key)
        if isinstance(name, str) and name not in systems and name != "local_system":
            read.refuse(key, f"names the system '{name}', which is not under systems; write one that is")
    if len(found) > 1:
        names = ", ".join(found)
        return read.refuse("systems", f"name {len(found)} execution providers ({names}); a model is built for one")
    for provider, place in found.items():
        read.take("execution_provider", provider.value, place)
    if systems or named:
        read.note("systems, host and target: a worker of the stack runs the workflow")
    return None


def _providers(read: Reading, place: str, system: Any) -> list[ExecutionProvider]:
    """The execution providers that a system names."""
    options = options_of(read, place, system, ("type",))
    if options is None:
        return []
    kind = str(options.values.get("type", "LocalSystem"))
    if kind.lower() != "localsystem":
        read.refuse(f"{place}.type", f"is {kind!r}; a worker of the stack runs the workflow: write LocalSystem")
    accelerators = options.pop("accelerators") or []
    found = []
    for number, accelerator in enumerate(accelerators if isinstance(accelerators, list) else [accelerators]):
        values = accelerator if isinstance(accelerator, Mapping) else {}
        named, device = values.get("execution_providers"), str(values.get("device") or "cpu")
        if not named and device.lower() != "cpu":
            where = f"{options.places['accelerators']}.{number}"
            read.refuse(where, f"is a {device} without an execution provider; write execution_providers")
        for provider in named if isinstance(named, list) else []:
            # Olive also takes [name, its options].
            name = provider[0] if isinstance(provider, list) and provider else provider
            known = PROVIDERS.get(str(name).lower())
            if known is None:
                where = f"{options.places['accelerators']}.{number}.execution_providers"
                read.refuse(where, f"names {name!r}; there is: {', '.join(PROVIDER_NAMES)}")
            else:
                found.append(known)
    return found


def _read_passes(read: Reading, passes: Any) -> None:
    if isinstance(passes, list) and passes:
        return read.refuse("passes", 'is a list; give each pass a name: {"builder": {"type": "ModelBuilder", ...}}')
    if not isinstance(passes, Mapping) or not passes:
        return read.refuse("passes", "is missing or empty; it needs at least a pass of type ModelBuilder")
    before: list[dict[str, Any]] = []
    after: list[dict[str, Any]] = []
    builders = 0
    for name, value in passes.items():
        place = f"passes.{name}"
        if isinstance(value, list) and len(value) != 1:
            read.refuse(place, f"has {len(value)} alternatives, which is a search; write one pass")
            continue
        options = options_of(read, place, value[0] if isinstance(value, list) else value, BESIDE_PASS)
        if options is None:
            continue
        kind = _pass_type(read, place, options)
        if kind.lower() == BUILDER:
            builders += 1
            read_builder(read, place, options)
        elif kind:
            when, named = ("after", after) if builders else ("before", before)
            read.places[f"olive_passes.{when}.{len(named)}.type"] = f"{place}.type"
            named.append({"type": kind, "config": options.values})
    if builders != 1:
        text = f"has {builders} passes of type ModelBuilder; exactly one makes a model that generates text: write one"
        read.refuse("passes", text)
    return _take_passes(read, before, after)


def _pass_type(read: Reading, place: str, options: Options) -> str:
    """The pass's type; what else is not an option of the pass itself is taken out of `options`."""
    kind = options.pop("type")
    if not isinstance(kind, str) or not kind:
        read.refuse(f"{place}.type", "is missing; write a pass of Olive, such as ModelBuilder")
        kind = ""
    if options.pop("evaluator"):
        read.refuse(f"{place}.evaluator", REFUSED["evaluator"])
    if isinstance(options.pop("host"), Mapping):
        read.refuse(f"{place}.host", "is a system of its own; a worker of the stack runs every pass, so leave it out")
    for key in ("disable_search", "clean_run_cache"):
        if options.pop(key) is not None:
            read.note(f"{place}.{key}: nothing is searched, and nothing is left of an earlier run")
    return kind


def _take_passes(read: Reading, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    if not before and not after:
        return
    passes: dict[str, Any] = {"before": before, "after": after}
    built, left = read.keys.get("precision"), precision_left(after)
    if left and built in (Precision.FP32, Precision.FP16) and left != built:
        # The builder's precision is only on the way; the model is called after what it becomes.
        passes["builder_precision"], read.keys["precision"] = built, left.value
    read.keys["olive_passes"] = passes
    for one in (*before, *after):
        is_calibrated = one["type"].lower() in CALIBRATED_PASSES
        learning = "; it learns from the text that is submitted as calibration" if is_calibrated else ""
        read.note(f"the pass {one['type']} is run as the file says{learning}")
