"""What a checkpoint is, read from its headers and config alone: family, parameters, tensors, template, predicted cost.

Nothing here reads weights or needs torch; `workers/steps/ingest.py` does what is left: the tensors against the
architecture, the numbers in them, the tokenizer at work.
"""

import os
import re
from collections import Counter
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from olivepress.checkpoints.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    GGUF,
    SMALL_JSON,
    WEIGHTS,
    adapter_base,
    file_identity,
    is_weights,
    read_json,
    relevant_files,
    unreadable,
)
from olivepress.checkpoints.gguf_folder import GgufFolder, check_gguf_text, read_gguf_folder
from olivepress.checkpoints.prequantized import Quantization, plain_tensors, read_quantization
from olivepress.checkpoints.safetensors_header import FLOAT_DTYPES, SafetensorsFile, Tensor, read_safetensors_header
from olivepress.checkpoints.tokenizer_files import (
    chat_template_file,
    check_tokenizer_files,
    has_tokenizer,
    refuse_stray_template,
    tokenizer_class,
)
from olivepress.checkpoints.weight_files import find_weights, other_format, refuse_without_weights
from olivepress.conversion_cost import Sizes
from olivepress.errors import BadCheckpoint

__all__ = ["Checkpoint", "CheckpointKind", "adapter_base", "file_identity", "inspect", "read_checkpoint"]

LORA = "LORA"
CAUSAL_LM = "CAUSAL_LM"
DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
MIXED_DTYPE = "mixed"
CONTEXT_FIELDS = ("max_position_embeddings", "seq_length", "n_positions", "max_sequence_length")
EMBEDDING_NAME = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)\.weight$")
HEAD_NAME = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
# Tables that older versions of transformers saved and that are computed anew today.
COMPUTED_NAME = re.compile(r"(rotary_emb\.inv_freq|attn\.masked_bias|attn\.bias)$")
LAYER_NUMBER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
# What peft saves beside a trained matrix of `modules_to_save` where the vocabulary grew: the same, and the one before.
SECOND_COPY = re.compile(r"\.(?:modules_to_save|original_module)(\.weight|\.bias)$")
STEP_FOLDER = re.compile(r"checkpoint-(\d+)$")


class CheckpointKind(StrEnum):
    """Whether a folder holds a whole model or only what was trained on top of one."""

    FULL = "full"
    ADAPTER = "adapter"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose config and headers are in order. For an adapter the model's facts are its base's."""

    directory: Path
    kind: CheckpointKind
    own_config: dict[str, Any]
    """config.json, or adapter_config.json of an adapter."""
    weights: tuple[SafetensorsFile, ...]
    base: "Checkpoint | None" = None
    gguf: GgufFolder | None = None
    """Where the weights are in a GGUF file: `own_config` and `weights` are then what it stands for."""

    @property
    def model(self) -> "Checkpoint":
        """The full checkpoint: this one, or the base of this adapter."""
        return self.base or self

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        return self.model.own_config

    @cached_property
    def quantization(self) -> Quantization | None:
        """How the weights of a full checkpoint were quantized before it came here."""
        return read_quantization(self.directory, self.own_config) if self.kind is CheckpointKind.FULL else None

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of this checkpoint's own files; those that are quantized by what they stand for."""
        stored = tuple(tensor for file in self.weights for tensor in file.tensors)
        return plain_tensors(stored, self.quantization, self.directory) if self.quantization else stored

    @property
    def architecture(self) -> str:
        """The first of the config's `architectures`, such as Qwen2ForCausalLM."""
        name: str = self.config["architectures"][0]
        return name

    @property
    def family(self) -> str:
        """The config's `model_type`, such as qwen2."""
        name: str = self.config["model_type"]
        return name

    @cached_property
    def parameters(self) -> int:
        """Number of the model's weights; a head tied to the embeddings counts once."""
        stored = (tensor for tensor in self.model.tensors if tensor.dtype in FLOAT_DTYPES)
        return sum(tensor.element_count for tensor in stored if not self._is_copy(tensor))

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of the weight files that a conversion reads: its own and its base's."""
        own = sum(file.size_bytes for file in self.weights)
        return own + (self.base.size_bytes if self.base else 0)

    @cached_property
    def dtype(self) -> str:
        """In what the model's weights are stored: bfloat16, float16, float32, float64 or mixed."""
        found = {DTYPE_NAMES[tensor.dtype] for tensor in self.model.tensors if tensor.dtype in FLOAT_DTYPES}
        return found.pop() if len(found) == 1 else MIXED_DTYPE

    @cached_property
    def tied_embeddings(self) -> bool:
        """Whether the output head is the embedding matrix."""
        stated = self.config_field("tie_word_embeddings")
        if isinstance(stated, bool):
            return stated
        return not any(HEAD_NAME.search(tensor.name) for tensor in self.model.tensors)

    @cached_property
    def context_length(self) -> int | None:
        """Tokens that the model was made for; None where config.json leaves it to the architecture."""
        stated = (self.config_field(name) for name in CONTEXT_FIELDS)
        return next((value for value in stated if isinstance(value, int) and value > 0), None)

    @cached_property
    def embedding(self) -> Tensor | None:
        """The embedding matrix, one row for each token."""
        return next((tensor for tensor in self.model.tensors if EMBEDDING_NAME.search(tensor.name)), None)

    @cached_property
    def vocabulary_size(self) -> int | None:
        """Rows of the embedding matrix by config.json, else by the weights."""
        stated = self.config_field("vocab_size")
        if isinstance(stated, int):
            return stated
        return self.embedding.shape[0] if self.embedding and self.embedding.shape else None

    @cached_property
    def tokenizer_directory(self) -> Path:
        """Whose tokenizer and chat template count: the adapter's where it has a tokenizer, else the base's."""
        return self.directory if has_tokenizer(self.directory) else self.model.directory

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """What the digest covers: all relevant files, of those with weights the ones that are used."""
        used = {file.path for file in self.weights}
        return tuple(path for path in relevant_files(self.directory) if path in used or not is_weights(path.name))

    def sizes(self) -> Sizes:
        """What the prediction of a conversion's cost needs."""
        return Sizes(
            source_bytes=self.size_bytes,
            parameters=self.parameters,
            embedding_parameters=self.embedding.element_count if self.embedding else 0,
            largest_tensor_parameters=max((tensor.element_count for tensor in self.model.tensors), default=0),
            tied_embeddings=self.tied_embeddings,
            is_adapter=self.kind is CheckpointKind.ADAPTER,
            is_quantized=self.model.quantization is not None,
            is_expanded=self.model.gguf is not None,
        )

    def config_field(self, name: str) -> Any:
        """A field of config.json, or of the text model's part of it; None where there is none."""
        nested = self.config.get("text_config")
        return self.config.get(name, nested.get(name) if isinstance(nested, dict) else None)

    def _is_copy(self, tensor: Tensor) -> bool:
        is_tied_head = self.tied_embeddings and bool(HEAD_NAME.search(tensor.name))
        return is_tied_head or bool(COMPUTED_NAME.search(tensor.name))


def read_checkpoint(directory: Path, base: Path | None = None) -> Checkpoint:
    """Read the config and every header of a checkpoint.

    Args:
        base: the full checkpoint under an adapter.

    Raises:
        BadCheckpoint: what is there is no checkpoint, or not a whole one.
        UnsafeCheckpoint: its weights are a pickle.
    """
    for name in SMALL_JSON:
        if (directory / name).is_file():
            read_json(directory / name)
    if (directory / ADAPTER_CONFIG).is_file():
        return _read_adapter(directory, base)
    if base is not None:
        raise BadCheckpoint(
            f"{directory} has no {ADAPTER_CONFIG}, so it is no adapter and has no use for the base {base}; "
            "leave 'base' out"
        )
    return _read_full(directory)


def check_text_files(checkpoint: Checkpoint, chosen_template: str | None = None) -> str:
    """See that the folder whose tokenizer counts has one, and one chat template; the name of the template's file.

    Args:
        chosen_template: the file whose template is meant where two differ.

    Raises:
        BadCheckpoint: something is missing, or two templates differ.
    """
    directory = checkpoint.tokenizer_directory
    if directory != checkpoint.directory:
        refuse_stray_template(checkpoint.directory, directory)
    if checkpoint.model.gguf and directory == checkpoint.model.directory:
        return check_gguf_text(checkpoint.model.gguf, chosen_template)
    check_tokenizer_files(directory)
    return chat_template_file(directory, chosen_template)


def inspect(path: Path, base: Path | None = None) -> dict[str, Any]:
    """What `olivepress inspect` shows: the facts, problems that ingest would refuse, and a predicted cost by recipe.

    Args:
        base: the full checkpoint under an adapter; without it, the local directory that the adapter itself names.

    Returns:
        JSON values: path, base, kind, architecture, family, parameters, size_bytes, dtype (of GGUF: the type of most
        weights, such as Q4_K), tied_embeddings, context_length, vocabulary_size, tensors (their number),
        tokenizer_class, chat_template (its file), problems (texts), sizes (what `step_cost` predicts from).

    Raises:
        BadCheckpoint: there is no checkpoint to tell anything about.
        TransientError: the disk or share does not give the files.
    """
    if not path.is_dir():
        raise BadCheckpoint(f"there is no directory '{path}'; check the path")
    try:
        checkpoint = read_checkpoint(path, base or adapter_base(path))
    except OSError as error:
        raise unreadable(Path(error.filename or path), error) from None
    problems: list[str] = []
    template = None
    try:
        template = check_text_files(checkpoint)
    except BadCheckpoint as problem:
        problems.append(str(problem))
    return {
        "path": os.fspath(path),
        "base": os.fspath(checkpoint.base.directory) if checkpoint.base else None,
        "kind": checkpoint.kind.value,
        "architecture": checkpoint.architecture,
        "family": checkpoint.family,
        "parameters": checkpoint.parameters,
        "size_bytes": checkpoint.gguf.file.size_bytes if checkpoint.gguf else checkpoint.size_bytes,
        "dtype": checkpoint.model.gguf.stored_as if checkpoint.model.gguf else checkpoint.dtype,
        "tied_embeddings": checkpoint.tied_embeddings,
        "context_length": checkpoint.context_length,
        "vocabulary_size": checkpoint.vocabulary_size,
        "tensors": len(checkpoint.tensors),
        "tokenizer_class": tokenizer_class(checkpoint.tokenizer_directory),
        "chat_template": template,
        "problems": problems,
        "sizes": asdict(checkpoint.sizes()),
    }


def _read_adapter(directory: Path, base: Path | None) -> Checkpoint:
    config = read_json(directory / ADAPTER_CONFIG)
    _check_adapter_config(directory, config)
    if not (directory / ADAPTER_WEIGHTS).is_file():
        refuse_without_weights(directory, ADAPTER_WEIGHTS)
    if base is None:
        named = config.get("base_model_name_or_path")
        whose = f"of '{named}', which is no directory that may be read here" if named else "that does not say of what"
        raise BadCheckpoint(f"{directory} is a LoRA adapter {whose}; give its base in the manifest: 'base: DIR'")
    if not base.is_dir():
        raise BadCheckpoint(f"there is no directory '{base}', the base of the adapter {directory}; check the path")
    if (base / ADAPTER_CONFIG).is_file():
        raise BadCheckpoint(
            f"{base}, the base of {directory}, is an adapter itself; merge it into its own base (merge_and_unload) "
            "and give that"
        )
    below = read_checkpoint(base)
    weights = (read_safetensors_header(directory / ADAPTER_WEIGHTS),)
    if not weights[0].tensors:
        raise BadCheckpoint(f"{weights[0].path} holds no tensors; save the adapter again")
    for tensor in weights[0].tensors:
        if tensor.dtype not in FLOAT_DTYPES:
            raise BadCheckpoint(
                f"'{tensor.name}' in {weights[0].path} is stored as {tensor.dtype}, and an adapter's matrices are "
                "merged as floats only; save the adapter in bfloat16, float16 or float32"
            )
    return Checkpoint(directory, CheckpointKind.ADAPTER, config, weights, below)


def _check_adapter_config(directory: Path, config: dict[str, Any]) -> None:
    peft_type, task_type = config.get("peft_type"), config.get("task_type")
    advice = "merge it into its base (merge_and_unload) and submit the full checkpoint"
    if peft_type != LORA:
        named = f"is an adapter of type '{peft_type}'" if peft_type else f"has no 'peft_type' in its {ADAPTER_CONFIG}"
        raise BadCheckpoint(f"{directory} {named}, and only LoRA adapters are converted; {advice}")
    if task_type not in (None, CAUSAL_LM):
        raise BadCheckpoint(f"{directory} was trained for the task '{task_type}', and only {CAUSAL_LM} models chat")
    if config.get("megatron_config"):
        raise BadCheckpoint(f"{directory} is an adapter for Megatron layers, which are not converted; {advice}")
    if (directory / WEIGHTS).is_file():
        raise BadCheckpoint(
            f"{directory} holds an adapter ({ADAPTER_CONFIG}) and a full model ({WEIGHTS}); keep the one that is meant"
        )


def _read_full(directory: Path) -> Checkpoint:
    if gguf := read_gguf_folder(directory):
        checkpoint = Checkpoint(directory, CheckpointKind.FULL, gguf.restoration.config, (gguf.weights(),), gguf=gguf)
        _check_config(directory / CONFIG, checkpoint.config)
        _check_layer_count(checkpoint)
        return checkpoint
    if not (directory / CONFIG).is_file():
        raise BadCheckpoint(_no_checkpoint(directory))
    config = read_json(directory / CONFIG)
    _check_config(directory / CONFIG, config)
    weights = find_weights(directory)
    _check_tensors(directory, weights)
    checkpoint = Checkpoint(directory, CheckpointKind.FULL, config, weights)
    # Reads the headers of quantized matrices too, and refuses those that are not whole.
    _check_layer_count(checkpoint)
    return checkpoint


def _no_checkpoint(directory: Path) -> str:
    # The second is the hub's cache: models--org--name/snapshots/<revision>.
    patterns = [f"{below}/{name}" for below in ("*", "snapshots/*") for name in (CONFIG, ADAPTER_CONFIG)]
    found = (path.parent.relative_to(directory) for pattern in patterns for path in directory.glob(pattern))
    inside = [folder.as_posix() for folder in found]
    if inside:
        # Trainers number them: the last is the most likely.
        inside.sort(key=lambda name: int(match[1]) if (match := STEP_FOLDER.search(name)) else -1)
        return (
            f"{directory} is no checkpoint itself but holds {len(inside)}, such as {inside[-1]}; "
            f"submit {directory / inside[-1]}"
        )
    if other := other_format(directory):
        return f"{directory} {other}"
    looked_for = f"looked for {CONFIG} with {WEIGHTS}, for {ADAPTER_CONFIG}, and for a *{GGUF}"
    if not any(directory.iterdir()):
        return f"{directory} is empty ({looked_for}); check whether the training has saved anything there"
    return f"{directory} is no checkpoint: it has no {CONFIG} ({looked_for}); save the model with save_pretrained(...)"


def _check_config(path: Path, config: dict[str, Any]) -> None:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not all(isinstance(a, str) for a in architectures):
        raise BadCheckpoint(f"{path} names no 'architectures'; add the model's class, such as [\"Qwen2ForCausalLM\"]")
    if not isinstance(config.get("model_type"), str):
        raise BadCheckpoint(f"{path} names no 'model_type'; add the model's family, such as \"qwen2\"")
    if "transformers_weights" in config:
        raise BadCheckpoint(f"{path} names other weights ('transformers_weights'); take that out and use {WEIGHTS}")
    read_quantization(path.parent, config)


def _check_tensors(directory: Path, weights: tuple[SafetensorsFile, ...]) -> None:
    names = Counter(tensor.name for file in weights for tensor in file.tensors)
    if not names:
        raise BadCheckpoint(f"{directory} has weight files without a single tensor; save the model again")
    name, count = names.most_common(1)[0]
    if count > 1:
        holders = ", ".join(file.path.name for file in weights if any(tensor.name == name for tensor in file.tensors))
        raise BadCheckpoint(f"{directory} holds '{name}' more than once ({holders}); save the model again")
    for file in weights:
        for tensor in file.tensors:
            if tensor.dtype not in FLOAT_DTYPES and tensor.name.endswith((".weight", ".bias")):
                raise BadCheckpoint(
                    f"'{tensor.name}' in {file.path} is stored as {tensor.dtype}, so it is quantized in some way; "
                    "save the model in bfloat16, float16 or float32"
                )


def _check_layer_count(checkpoint: Checkpoint) -> None:
    # Every layer has a tensor at least. A forged number would keep transformers busy for hours before it looks there.
    layers = checkpoint.config_field("num_hidden_layers")
    if isinstance(layers, int) and layers > len(checkpoint.tensors):
        raise BadCheckpoint(
            f"{checkpoint.directory / CONFIG} promises {layers:,} layers and the weights hold only "
            f"{len(checkpoint.tensors)} tensors; put back the {CONFIG} that belongs to the weights"
        )
