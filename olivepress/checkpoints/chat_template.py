"""The chat template of a model directory: which of its files counts, and how it turns messages into a prompt."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from olivepress.errors import BadCheckpoint

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Any day: a template that writes the date is found by rendering on two days, never by the real one.
DAY = datetime(2001, 2, 3, 4, 5, 6)
QUESTION, ANSWER = "Which oil is the best?", "That of the first pressing."

Message = Mapping[str, str]


class Whitespace(Enum):
    """What becomes of line breaks and indentation around `{% %}` that the template does not trim itself."""

    TRIMMED = "trimmed"
    """transformers: jinja2 with trim_blocks and lstrip_blocks."""
    KEPT = "kept"
    """onnxruntime-genai, and with it Foundry Local."""


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja source and what its tokenizer lends to it.

    `special_tokens` maps such names as `bos_token` to their text; `added_tokens` are all texts that the tokenizer
    never cuts into pieces.
    """

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    added_tokens: tuple[str, ...] = ()

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        day: datetime = DAY,
        whitespace: Whitespace = Whitespace.TRIMMED,
    ) -> str:
        """The prompt for these messages, as transformers' `apply_chat_template(tokenize=False)` gives it.

        Raises:
            BadCheckpoint: the template has an error, or refuses these messages.
        """
        environment = environment_of(whitespace, day)
        try:
            return environment.from_string(self.source).render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise BadCheckpoint(f"the chat template cannot be rendered: {error}") from error


def end_of_turn(template: ChatTemplate, tokens: Iterable[str]) -> str | None:
    """Which of these tokens the template writes right after an assistant's answer; None for none of them.

    A model that was trained with the template ends its answers with it, whatever its config calls the end.
    """
    turns = ({"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER})
    try:
        chat = template.render(turns, add_generation_prompt=False)
    except BadCheckpoint:
        return None
    _, answer, rest = chat.rpartition(ANSWER)
    following = [token for token in tokens if token.strip() and rest.lstrip().startswith(token)]
    return max(following, key=len) if answer and following else None


def read_chat_template(directory: Path) -> ChatTemplate | None:
    """The template with which transformers 5 would chat from this directory; None where there is none.

    chat_template.jinja counts before the entry in tokenizer_config.json: it is what newer tools write, and what is
    left in the other is then stale.

    Raises:
        BadCheckpoint: a file is not readable as what it should be.
    """
    config = read_tokenizer_config(directory)
    source = _source(directory, config)
    if source is None:
        return None
    added = _added_tokens(config)
    special = {key: text for key in SPECIAL_TOKEN_KEYS if (text := _token_text(config.get(key))) is not None}
    return ChatTemplate(source, special, tuple(sorted(added | set(special.values()))))


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, empty where it is missing.

    Raises:
        BadCheckpoint: it is no JSON object.
    """
    path = directory / TOKENIZER_CONFIG_FILE
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise BadCheckpoint(f"{TOKENIZER_CONFIG_FILE} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise BadCheckpoint(f"{TOKENIZER_CONFIG_FILE} must hold one JSON object")
    return config


def _source(directory: Path, config: Mapping[str, Any]) -> str | None:
    path = directory / TEMPLATE_FILE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadCheckpoint(f"{TEMPLATE_FILE} is not UTF-8 text: {error}") from error
    entry = config.get("chat_template")
    if isinstance(entry, list):
        # Several named templates (older transformers): the default one answers a plain chat.
        named = {item.get("name"): item.get("template") for item in entry if isinstance(item, dict)}
        entry = named.get("default")
    return entry if isinstance(entry, str) and entry.strip() else None


def _token_text(entry: object) -> str | None:
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _added_tokens(config: Mapping[str, Any]) -> set[str]:
    decoder = config.get("added_tokens_decoder")
    entries = list(decoder.values()) if isinstance(decoder, dict) else []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = config.get(key)
        entries += listed if isinstance(listed, list) else []
    return {text for entry in entries if (text := _token_text(entry))}


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; rendering ignores the mark."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 wants a plain class attribute

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def environment_of(whitespace: Whitespace, day: datetime = DAY) -> ImmutableSandboxedEnvironment:
    """The sandbox in which templates are rendered, with the clock stopped.

    Source: transformers.utils.chat_template_utils, `_cached_compile_jinja_template`.
    """
    is_trimmed = whitespace is Whitespace.TRIMMED
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=is_trimmed,
        lstrip_blocks=is_trimmed,
        extensions=[_Generation, loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    strftime: Callable[[str], str] = day.strftime
    environment.globals["strftime_now"] = strftime
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
