"""A checkpoint's tensors held against its architecture: transformers' own loader, on the meta device, without weights.

The loader is the one that the builder uses, so what it calls missing here it would fill with random numbers there.
Nothing is read but the headers: a model of any size takes some milliseconds and no memory.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import peft
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from olivepress.checkpoints.files import CONFIG
from olivepress.checkpoints.reading import SECOND_COPY, Checkpoint
from olivepress.checkpoints.safetensors_header import Tensor
from olivepress.errors import BadCheckpoint, UnsafeCheckpoint, UnsupportedArchitecture
from workers.toolchains.library_edge import library_edge
from workers.toolchains.limits import within_limits
from workers.toolchains.olive import supported_architectures
from workers.toolchains.weights import TORCH_DTYPES

__all__ = ["ModelFacts", "check_adapter", "check_architecture", "supported_architectures", "vocabulary_of"]

NAMES_SHOWN = 3
# The builder writes a table of angles with a row for each position: of the longest that fine-tunes have, gigabytes.
LONGEST_CONTEXT = 2**22
FLOATS = ("float32", "bfloat16", "float16", "float64")
ROPE_BASES = ("rope_theta", "rope_local_base_freq", "global_rope_theta", "local_rope_theta")
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")
MEND_CONFIG = "put back the config.json that belongs to the weights"
STARTS_FROM_BASE = ("pissa", "olora", "eva", "corda", "loftq", "lora_ga")
WHOLE_EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class ModelFacts:
    """What the architecture says of a model that config.json alone does not."""

    parameters: int
    context_length: int
    vocabulary_size: int
    """Rows of the embedding matrix."""
    tied_embeddings: bool
    stop_ids: tuple[int, ...]
    """Ids of the end-of-sequence tokens that config.json names; may be empty."""
    tied_pair: tuple[str, str] | None = None
    """Names of two stored tensors that must be equal, for config.json says that they are one."""


def check_architecture(checkpoint: Checkpoint) -> ModelFacts:
    """Compare the names and shapes of a full checkpoint's tensors with its architecture's parameters.

    Raises:
        UnsafeCheckpoint: it needs Python code of its own.
        UnsupportedArchitecture: the builder does not know it.
        BadCheckpoint: config.json is at odds with itself or with the weights.
    """
    config, model_class = _model_class(checkpoint)
    _check_values(checkpoint, config)
    stored = {tensor.name: tensor for tensor in checkpoint.tensors}
    tied_pair = _tied_pair(model_class, config, stored)
    given = {name: _on_meta(tensor) for name, tensor in stored.items() if not tied_pair or name != tied_pair[0]}
    with library_edge(f"{checkpoint.directory / CONFIG} makes no {checkpoint.architecture}", MEND_CONFIG):
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=given,
            # The model and what is loaded into it stay without memory.
            device_map={"": "meta"},
            dtype=torch.bfloat16,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _refuse_differences(checkpoint, report)
    return _facts(config, model, tied_pair)


def _check_values(checkpoint: Checkpoint, config: transformers.PreTrainedConfig) -> None:
    """Values that make a model of the right shape which cannot run."""
    place = checkpoint.directory / CONFIG
    context = config.get_text_config().max_position_embeddings
    if not 0 < context <= LONGEST_CONTEXT:
        raise BadCheckpoint(
            f"{place} promises a context of {context:,} tokens ('max_position_embeddings'), and 1 to "
            f"{LONGEST_CONTEXT:,} can be; {MEND_CONFIG}"
        )
    for key, value in _numbers(checkpoint.own_config):
        if isinstance(value, float) and not math.isfinite(value):
            raise BadCheckpoint(f"'{key}' in {place} is {value}; {MEND_CONFIG}")
        if key in ROPE_BASES and value <= 0:
            raise BadCheckpoint(f"'{key}' in {place} is {value}, and angles need a base above 0; {MEND_CONFIG}")
        if key in EPSILONS and not 0 <= value < 1:
            raise BadCheckpoint(f"'{key}' in {place} is {value}, and a norm adds some millionths; {MEND_CONFIG}")
    dtype = checkpoint.config_field("dtype") or checkpoint.config_field("torch_dtype")
    if dtype is not None and dtype not in FLOATS:
        raise BadCheckpoint(
            f"'dtype' in {place} is '{dtype}', and a model computes in one of {', '.join(FLOATS)}; {MEND_CONFIG}"
        )


def _numbers(values: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a tree of JSON values, with the key that it stands under."""
    if isinstance(values, int | float) and not isinstance(values, bool):
        yield key, values
    elif isinstance(values, dict | list):
        for name, value in values.items() if isinstance(values, dict) else ((key, value) for value in values):
            yield from _numbers(value, name)


def vocabulary_of(adapter: Checkpoint) -> int | None:
    """Rows of the embeddings that an adapter brings along, which replace its base's; None where it brings none.

    Tokens that were added for the training make them more than the base has.
    """
    saved = (tensor for tensor in adapter.tensors if tensor.name.endswith(WHOLE_EMBEDDINGS) and tensor.shape)
    return next((tensor.shape[0] for tensor in saved), None)


def check_adapter(checkpoint: Checkpoint) -> list[str]:
    """Compare the names and shapes of an adapter's tensors with what peft would put into its base.

    Returns:
        Notes: what is unusual and no reason to refuse.

    Raises:
        BadCheckpoint: the adapter was trained on another base, or is not whole.
    """
    problem = f"{checkpoint.directory} does not match its base {checkpoint.model.directory}"
    advice = "give the base it was trained on"
    config, model_class = _model_class(checkpoint.model)
    config.get_text_config().vocab_size = vocabulary_of(checkpoint) or config.get_text_config().vocab_size
    what_now = f"{advice}, or save the adapter again"

    def adapt() -> tuple[peft.PeftModel, dict[str, torch.Tensor]]:
        with library_edge(problem, what_now):
            with torch.device("meta"):
                model = peft.PeftModelForCausalLM(model_class(config), _peft_config(checkpoint), low_cpu_mem_usage=True)
            return model, peft.get_peft_model_state_dict(model, save_embedding_layers=False)

    # Names of modules may be given as a pattern, and one that explodes keeps peft busy for ever.
    adapted, trained = within_limits(adapt, problem, what_now)
    expected = {name: tuple(tensor.shape) for name, tensor in trained.items()}
    # peft may save an embedding matrix as well; it then replaces the base's and must have its shape.
    allowed = expected | {name: tuple(tensor.shape) for name, tensor in adapted.state_dict().items()}
    stored = {tensor.name: tensor.shape for tensor in checkpoint.tensors}
    for name, shape in stored.items():
        if SECOND_COPY.search(name) and SECOND_COPY.sub(r"\1", name) in stored:
            continue
        if name not in allowed:
            raise BadCheckpoint(f"{problem}: it changes '{name}', which the base does not have; {advice}")
        if shape != allowed[name]:
            merging = (
                ", or merge the adapter (merge_and_unload) and submit the full checkpoint" if _is_table(name) else ""
            )
            sizes = f"{_size(shape)}, over this base it would be {_size(allowed[name])}"
            raise BadCheckpoint(f"{problem}: '{name}' is {sizes}; {advice}{merging}")
    if absent := sorted(expected.keys() - stored.keys()):
        raise BadCheckpoint(f"{problem}: it lacks {_listed(absent)}, which the base's size asks for; {advice}")
    return _base_notes(checkpoint) + _unknown_keys(checkpoint)


def _model_class(checkpoint: Checkpoint) -> tuple[transformers.PreTrainedConfig, type[transformers.PreTrainedModel]]:
    architecture, family = checkpoint.architecture, checkpoint.family
    is_native = family in CONFIG_MAPPING_NAMES and hasattr(transformers, architecture)
    if not is_native and checkpoint.own_config.get("auto_map"):
        raise UnsafeCheckpoint(
            f"{checkpoint.directory} needs Python code of its own for {architecture} ('auto_map' in {CONFIG}), which "
            f"is never run; submit a checkpoint of a supported architecture: {', '.join(supported_architectures())}"
        )
    if architecture not in supported_architectures():
        raise UnsupportedArchitecture(
            f"{checkpoint.directory} is a {architecture}, which cannot be converted; the supported architectures are "
            f"{', '.join(supported_architectures())}"
        )
    if family not in CONFIG_MAPPING_NAMES:
        raise BadCheckpoint(
            f"{checkpoint.directory / CONFIG} names the model_type '{family}', which transformers "
            f"{transformers.__version__} does not know; {MEND_CONFIG}"
        )
    with library_edge(f"{checkpoint.directory / CONFIG} is no configuration of a {family} model", MEND_CONFIG):
        config = transformers.AutoConfig.from_pretrained(
            checkpoint.directory, local_files_only=True, trust_remote_code=False
        )
    if hasattr(config, "quantization_config"):
        # What the weights stand for counts here; transformers would ask for the library that quantized them.
        del config.quantization_config
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is None or model_class.__name__ != architecture:
        raise BadCheckpoint(
            f"{checkpoint.directory / CONFIG} is at odds with itself: it names the architecture {architecture} and the "
            f"model_type '{family}', which is not its own; {MEND_CONFIG}"
        )
    return config, model_class


def _tied_pair(
    model_class: type[transformers.PreTrainedModel], config: transformers.PreTrainedConfig, stored: dict[str, Tensor]
) -> tuple[str, str] | None:
    """Head and embedding where both are stored although config.json ties them: (the copy, its source)."""
    if not config.get_text_config().tie_word_embeddings:
        return None
    prefix = f"{model_class.base_model_prefix}."
    for copy, source in (model_class._tied_weights_keys or {}).items():
        for name in (source, source.removeprefix(prefix)):
            if copy in stored and name in stored:
                return copy, name
    return None


def _on_meta(tensor: Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=TORCH_DTYPES.get(tensor.dtype, torch.float32), device="meta")


def _refuse_differences(checkpoint: Checkpoint, report: dict[str, Any]) -> None:
    """Turn the loader's report into one message; what it ignores by its own rules is not in the report."""
    directory, architecture = checkpoint.directory, checkpoint.architecture
    for name, stored, needed in sorted(report["mismatched_keys"]):
        raise BadCheckpoint(
            f"'{name}' in {directory} is {_size(stored)}, by {CONFIG} it would be {_size(needed)}; "
            f"put the {CONFIG} and the weights together that belong together"
        )
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if prefix := _wrapper_prefix(missing, unexpected):
        raise BadCheckpoint(
            f"the tensors in {directory} carry the prefix '{prefix}' of a wrapper around the model; save the model "
            "inside: merge_and_unload() for peft, ._orig_mod for torch.compile, .module for parallel training"
        )
    if missing:
        raise BadCheckpoint(
            f"{directory} lacks {_listed(missing)}, which a {architecture} needs and the builder would fill with "
            "random numbers; save or copy all of the weights again"
        )
    if unexpected:
        raise BadCheckpoint(
            f"{directory} holds {_listed(unexpected)}, for which a {architecture} with this {CONFIG} has no place; "
            f"put the {CONFIG} and the weights together that belong together, or take the extra tensors out"
        )
    if report["error_msgs"]:
        raise BadCheckpoint(f"{directory} cannot be loaded as a {architecture}: {report['error_msgs'][0]}")


def _wrapper_prefix(missing: list[str], unexpected: list[str]) -> str | None:
    for name in missing:
        for found in unexpected:
            if found.endswith(f".{name}"):
                return found.removesuffix(name)
    return None


def _facts(
    config: transformers.PreTrainedConfig, model: transformers.PreTrainedModel, tied_pair: tuple[str, str] | None
) -> ModelFacts:
    text_config = config.get_text_config()
    stop = text_config.eos_token_id
    return ModelFacts(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        context_length=text_config.max_position_embeddings,
        vocabulary_size=model.get_input_embeddings().weight.shape[0],
        tied_embeddings=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        stop_ids=tuple(stop) if isinstance(stop, list) else (() if stop is None else (stop,)),
        tied_pair=tied_pair,
    )


def _peft_config(checkpoint: Checkpoint) -> peft.PeftConfig:
    config = peft.PeftConfig.from_pretrained(str(checkpoint.directory))
    config.inference_mode = True
    if str(config.init_lora_weights).startswith(STARTS_FROM_BASE):
        # The base's weights are not here; names and shapes are the same with any start.
        config.init_lora_weights = True
    return config


def _is_table(name: str) -> bool:
    """Whether the tensor has a row for each token, so that tokens which were added explain its size."""
    return "embed_tokens" in name or "lm_head" in name


def _base_notes(checkpoint: Checkpoint) -> list[str]:
    named = checkpoint.own_config.get("base_model_name_or_path")
    given = checkpoint.model.directory.name
    if not isinstance(named, str) or PurePath(named).name == given:
        return []
    return [f"the adapter was trained on '{named}', the base given is called '{given}'; their sizes agree"]


def _unknown_keys(checkpoint: Checkpoint) -> list[str]:
    """What a newer peft may have written; this one passes over it."""
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)} | {"peft_version"}
    unknown = sorted(key for key, value in checkpoint.own_config.items() if value and key not in known)
    if not unknown:
        return []
    return [
        f"adapter_config.json in {checkpoint.directory} sets {', '.join(unknown)}, which peft {peft.__version__} does "
        "not know; the adapter is merged without"
    ]


def _size(shape: Iterable[int]) -> str:
    return " × ".join(map(str, shape)) or "a single number"


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:NAMES_SHOWN])
    return shown + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else "")
