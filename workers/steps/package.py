"""Package: a converted model becomes the directory that is published. Pure: same spec and artifact, same bytes."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from olivepress.checkpoints.chat_template import (
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    ChatTemplate,
    end_of_turn,
    read_chat_template,
    read_tokenizer_config,
)
from olivepress.errors import BadArtifact, BadCheckpoint
from olivepress.foundry.inference_model import GENAI_CONFIG_FILE, fitting
from olivepress.foundry.portable_template import portable, unknown_to_the_engine
from olivepress.foundry.prompt_template import derive_prompt_template
from olivepress.recipes.recipe import FoundrySettings
from workers.steps.context import StepContext

log = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
REWRITTEN = frozenset({GENAI_CONFIG_FILE, TOKENIZER_CONFIG_FILE, TEMPLATE_FILE})
# Templates by other names would contradict the one that counts.
LEFT_OUT = frozenset({"additional_chat_templates", "chat_template.json", "chat_templates"})
# What transformers notes about the machine and the call that wrote the file.
VOLATILE_KEYS = frozenset({"is_local", "local_files_only", "name_or_path", "_name_or_path", "_commit_hash"})
# The classes that onnxruntime-genai 0.18 takes, each with or without "Fast" (tried one by one). All cut text as
# tokenizer.json says, but for LlamaTokenizer, which takes every byte-level one to cut words as Llama 3 does.
KNOWN_TOKENIZER_CLASSES = frozenset(
    {
        "CLIPTokenizer",
        "ChatGLMTokenizer",
        "CodeGenTokenizer",
        "CodeLlamaTokenizer",
        "GPT2Tokenizer",
        "GPTNeoXTokenizer",
        "GemmaTokenizer",
        "LlamaTokenizer",
        "Phi3Tokenizer",
        "PreTrainedTokenizer",
        "Qwen2Tokenizer",
        "T5Tokenizer",
        "WhisperTokenizer",
        "XLMRobertaTokenizer",
    }
)
# Means "as tokenizer.json says" to every release of the engine; transformers 5 calls the same TokenizersBackend, which
# older engines do not know.
GENERIC_TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """Write the package into `context.output`.

    Args:
        spec: {"foundry": FoundrySettings as dict, "context_length": tokens, "family": model_type}, and where the
            manifest chose between two chat templates "chat_template", the one that is meant.
        context: inputs {"artifact": what convert wrote}.

    Returns:
        {"prompt_template": {role: piece} | None, "prompt_template_reason": why there is none, or what it does not
        carry, "size_bytes": of all files, "notes": sentences}

    Raises:
        BadArtifact: the converted model lacks a file, or a file is not what it should be.
        BadCheckpoint: the chat template cannot be used.
    """
    artifact = context.inputs["artifact"]
    chat_template = _chat_template(artifact, spec.get("chat_template"))
    _take_over(artifact, context.output)
    settings = fitting(FoundrySettings(**spec["foundry"]), spec["context_length"])
    genai_config = _genai_config(artifact, settings, spec["context_length"])
    notes = _stop_where_the_template_does(artifact, genai_config["model"], chat_template)
    notes += _unknown_words(chat_template)
    _write_json(context.output / GENAI_CONFIG_FILE, genai_config)
    _write_json(context.output / TOKENIZER_CONFIG_FILE, _tokenizer_config(artifact, chat_template))
    _write_text(context.output / TEMPLATE_FILE, chat_template.source)
    derivation = derive_prompt_template(chat_template)
    if derivation.note:
        kind = "PromptTemplate" if derivation.template else "no PromptTemplate"
        log.info("%s for family %s: %s", kind, spec["family"], derivation.note)
    return {
        "prompt_template": derivation.template,
        "prompt_template_reason": derivation.note,
        "size_bytes": sum(file.stat().st_size for file in context.output.rglob("*") if file.is_file()),
        "notes": notes,
    }


def _chat_template(artifact: Path, chosen: str | None) -> ChatTemplate:
    chat_template = read_chat_template(artifact)
    if chat_template is not None and chosen is not None:
        chat_template = replace(chat_template, source=chosen)
    if chat_template is None:
        raise BadCheckpoint(
            f"there is no chat template, so nobody can chat with the model; put {TEMPLATE_FILE} beside the "
            "checkpoint's tokenizer and submit it again"
        )
    rewritten = portable(chat_template)
    if rewritten is not chat_template:
        log.info("the chat template is written anew: onnxruntime-genai trims no line breaks and knows a part of Jinja")
    return rewritten


def _unknown_words(chat_template: ChatTemplate) -> list[str]:
    unknown = unknown_to_the_engine(chat_template)
    if not unknown:
        return []
    note = (
        f"the chat template uses {', '.join(unknown)}, which onnxruntime-genai does not know: a chat that comes to "
        "such a place fails in Foundry Local; write it otherwise if yours do"
    )
    log.info("note: %s", note)
    return [note]


def _take_over(artifact: Path, output: Path) -> None:
    """Bring every file that stays as it is into the package: a second link where the file system can, else a copy."""
    for source in sorted(artifact.rglob("*")):
        relative = source.relative_to(artifact)
        if source.is_dir() or relative.parts[0] in LEFT_OUT or str(relative) in REWRITTEN:
            continue
        target = output / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source.resolve(), target)
        except OSError:
            shutil.copyfile(source, target)


def _genai_config(artifact: Path, settings: FoundrySettings, context_length: int) -> dict[str, Any]:
    path = artifact / GENAI_CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
        model, search = config["model"], config["search"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadArtifact(
            f"the converted model has no usable {GENAI_CONFIG_FILE}; convert the checkpoint again"
        ) from error
    model["context_length"] = context_length
    search |= {
        "do_sample": settings.temperature > 0,
        "max_length": settings.max_length,
        "repetition_penalty": settings.repetition_penalty,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
    }
    cleaned: dict[str, Any] = _without_nulls(config)
    return cleaned


def _stop_where_the_template_does(artifact: Path, model: dict[str, Any], template: ChatTemplate) -> list[str]:
    """Let the engine end an answer with the token that the template writes after one; a note where that is new.

    Configs of fine-tunes often name the end of a text only; an engine then goes on past the end of the turn and
    writes the user's part too.
    """
    try:
        tokenizer = json.loads((artifact / TOKENIZER_FILE).read_text(encoding="utf-8"))
        added = {str(token["content"]): int(token["id"]) for token in tokenizer.get("added_tokens") or ()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadArtifact(
            f"the converted model has no usable {TOKENIZER_FILE}; convert the checkpoint again"
        ) from error
    ending = end_of_turn(template, added)
    stops = model.get("eos_token_id")
    listed = stops if isinstance(stops, list) else [] if stops is None else [stops]
    if ending is None or added[ending] in listed:
        return []
    model["eos_token_id"] = [*listed, added[ending]]
    note = f"answers end with '{ending}' (token {added[ending]}) too, as the chat template ends them"
    log.info("note: %s", note)
    return [note]


def _without_nulls(value: Any) -> Any:
    """The engine's reader knows no null; a key that is not there means the same."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _tokenizer_config(artifact: Path, chat_template: ChatTemplate) -> dict[str, Any]:
    config = {key: value for key, value in read_tokenizer_config(artifact).items() if key not in VOLATILE_KEYS}
    named = config.get("tokenizer_class")
    if not isinstance(named, str) or named.removesuffix("Fast") not in KNOWN_TOKENIZER_CLASSES:
        log.info("tokenizer class %s is unknown to onnxruntime-genai; %s is written", named, GENERIC_TOKENIZER_CLASS)
        config["tokenizer_class"] = GENERIC_TOKENIZER_CLASS
    # Here too, and last: older engines read it only here.
    config.pop("chat_template", None)
    return config | {"chat_template": chat_template.source}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
