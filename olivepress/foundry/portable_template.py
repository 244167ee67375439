"""Rewrites a chat template so that it means the same to transformers and to onnxruntime-genai. Pure.

transformers renders with jinja2's trim_blocks and lstrip_blocks; onnxruntime-genai's renderer has neither. A template
whose tags stand on lines of their own without `{%-` (Zephyr's, for one) then gains line breaks that the checkpoint
never saw in training. And it knows a part of Jinja only (see engine_jinja): SmolLM3's template fails over `.replace`.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace

import jinja2

from olivepress.checkpoints.chat_template import ChatTemplate, Message, Whitespace, environment_of
from olivepress.errors import BadCheckpoint
from olivepress.foundry import engine_jinja, jinja_text

SAMPLES: tuple[tuple[Message, ...], ...] = (
    *(
        tuple({"role": role, "content": f"text {place}"} for place, role in enumerate(roles))
        for roles in (
            ("user",),
            ("system", "user"),
            ("user", "assistant", "user"),
            ("system", "user", "assistant", "user", "assistant", "user"),
        )
    ),
    # What templates look for in a text and cut out of it.
    (
        {"role": "system", "content": "Be brief. /no_think"},
        {"role": "user", "content": "  text\n"},
        {"role": "assistant", "content": "<think>\na thought\n</think>\n\nan answer</think> of two"},
        {"role": "user", "content": "another 1<2 text"},
    ),
)
# The lexer has already applied every `-` and `+` to the data around it.
TAGS = {
    "block_begin": "{%",
    "block_end": "%}",
    "variable_begin": "{{",
    "variable_end": "}}",
}
EDGES = re.compile(r"(\s*)(.*?)(\s*)", flags=re.DOTALL)


def portable(chat_template: ChatTemplate) -> ChatTemplate:
    """The same template where both renderers agree on it already, else an equivalent one.

    Raises:
        BadCheckpoint: the template cannot be rendered, or cannot be rewritten without changing what it writes.
    """
    wanted = _renderings(chat_template, Whitespace.TRIMMED)
    if not any(wanted):
        raise BadCheckpoint("the chat template refuses every plain conversation of a user and an assistant")
    reworded = _reworded(chat_template)
    if reworded and all(_renderings(reworded, whitespace) == wanted for whitespace in Whitespace):
        return reworded
    if _renderings(chat_template, Whitespace.KEPT) == wanted:
        return chat_template
    rewritten = replace(chat_template, source="".join(_explicit(chat_template.source)))
    if any(_renderings(rewritten, whitespace) != wanted for whitespace in Whitespace):
        raise BadCheckpoint(
            "the chat template writes other line breaks in onnxruntime-genai than in transformers; "
            "write its tags as {%- ... -%} and add line breaks as text"
        )
    return rewritten


def unknown_to_the_engine(chat_template: ChatTemplate) -> list[str]:
    """What the template uses and onnxruntime-genai does not know: a chat fails where it comes to that."""
    return engine_jinja.unknown_words(_parsed(chat_template))


def _parsed(chat_template: ChatTemplate) -> jinja2.nodes.Template:
    return environment_of(Whitespace.TRIMMED).parse(chat_template.source)


def _reworded(chat_template: ChatTemplate) -> ChatTemplate | None:
    """The template in words that the engine knows; None where it is already, or cannot be written."""
    template = _parsed(chat_template)
    if not engine_jinja.reworded(template):
        return None
    try:
        return replace(chat_template, source=jinja_text.written(template))
    except jinja_text.NotWritable:
        return None


def _renderings(chat_template: ChatTemplate, whitespace: Whitespace) -> list[str | None]:
    """What the template writes for the samples; None where it refuses one."""
    renderings: list[str | None] = []
    for sample in SAMPLES:
        for opened in (True, False):
            try:
                renderings.append(chat_template.render(sample, add_generation_prompt=opened, whitespace=whitespace))
            except BadCheckpoint:
                renderings.append(None)
    return renderings


def _explicit(source: str) -> Iterator[str]:
    """The template's tokens, with all whitespace that is to be written said as text inside `{{ }}`."""
    is_raw = False
    for _, kind, value in environment_of(Whitespace.TRIMMED).lex(source):
        if kind in TAGS:
            yield TAGS[kind]
        elif kind in ("raw_begin", "raw_end"):
            is_raw = kind == "raw_begin"
        elif kind == "data":
            yield _quoted(value) if is_raw else _data(value)
        elif not kind.startswith("comment"):
            yield value


def _data(text: str) -> str:
    edges = EDGES.fullmatch(text)
    before, middle, after = edges.groups() if edges else ("", text, "")
    return _quoted(before) + middle + _quoted(after)


def _quoted(text: str) -> str:
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""
