"""Whether the engine frames and cuts text as the checkpoint's own chat template and tokenizer do.

Method: sample conversations and the job's own are rendered and cut twice, by onnxruntime-genai (what Foundry Local
does) and by jinja2 with the `tokenizers` library (what training did). A difference does not keep the model from
answering, but it is then asked in other tokens than it was trained on: known of templates with today's date, and of
tokenizers whose Metaspace prepends "first" (Mistral), where the engine adds a space after every special token.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from olivepress.checkpoints.chat_template import ChatTemplate, Message
from olivepress.errors import BadCheckpoint

SAMPLES: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "What is the capital of France?"},),
    (
        {"role": "user", "content": "Grüße aus Köln! 你好\n  1234 don't"},
        {"role": "assistant", "content": "def f(x):\n    return x + 1\n"},
        {"role": "user", "content": "Thanks. And  now?"},
    ),
)
FRAMED_ALONE: tuple[tuple[Message, ...], ...] = (
    ({"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Which oil is the best?"}),
    (
        {"role": "system", "content": "  You are brief.\n"},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And three?"},
    ),
    ({"role": "user", "content": ""},),
    ({"role": "user", "content": "\n  A list:\n\n\t- 12345\n"}, {"role": "assistant", "content": " Yes. "}),
    ({"role": "user", "content": "What is 2 + 2?"}, {"role": "tool", "content": "4"}),
    tuple({"role": ("user", "assistant")[place % 2], "content": f"Turn {place}."} for place in range(9)),
)
"""What is not asked, only framed by the source and by the artifact's own files, which both may refuse: where templates
differ that frame a plain question alike."""
SHOWN_CHARACTERS = 60
SHOWN_TOKENS = 3


@dataclass(frozen=True)
class Framed:
    """What the engine made of a conversation: the prompt's text and its tokens; None where it refused it."""

    text: str | None
    tokens: tuple[int, ...] = ()


def compare(
    template: ChatTemplate, tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]], framed: Sequence[Framed]
) -> dict[str, Any]:
    """Hold the engine's framing of these conversations against the checkpoint's own.

    Returns:
        {"compared", "same_text", "same_tokens": counts of conversations, "first_difference": str | None}
    """
    differences = [
        _difference(_rendered(template, messages), tokenizer, theirs)
        for messages, theirs in zip(conversations, framed, strict=True)
    ]
    return {
        "compared": len(differences),
        "same_text": sum(not (difference or "").startswith("text") for difference in differences),
        "same_tokens": differences.count(None),
        "first_difference": next(filter(None, differences), None),
    }


def _rendered(template: ChatTemplate, messages: Sequence[Message]) -> str | None:
    try:
        return template.render(messages)
    except BadCheckpoint:
        return None


def _difference(text: str | None, tokenizer: Tokenizer, framed: Framed) -> str | None:
    # The template writes the special tokens itself, so the tokenizer must not add them once more.
    tokens = () if text is None else tuple(tokenizer.encode(text, add_special_tokens=False).ids)
    return difference(framed, Framed(text, tokens), tokenizer, "training")


def difference(framed: Framed, wanted: Framed, tokenizer: Tokenizer, whose: str) -> str | None:
    """Where a framing first departs from the one that is wanted, which is `whose`; None for equal ones."""
    if wanted.text is None or framed.text is None:
        return None if wanted.text is framed.text else "text: only one of the two refuses the conversation"
    if framed.text != wanted.text:
        return f"text: {_around(framed.text, wanted.text)} where {whose} had {_around(wanted.text, framed.text)}"
    if framed.tokens != wanted.tokens:
        place = _first_difference(framed.tokens, wanted.tokens)
        ours, theirs = (
            _named(tokenizer, side[place : place + SHOWN_TOKENS]) for side in (framed.tokens, wanted.tokens)
        )
        return f"tokens: {ours} where {whose} had {theirs}"
    return None


def _first_difference(one: Sequence[object], other: Sequence[object]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (mine, theirs) in pairs if mine != theirs), min(len(one), len(other)))


def _named(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    return " ".join(tokenizer.id_to_token(token) or str(token) for token in tokens) or "the end"


def _around(text: str, other: str) -> str:
    start = max(0, _first_difference(text, other) - SHOWN_CHARACTERS // 3)
    return json.dumps(text[start : start + SHOWN_CHARACTERS], ensure_ascii=False)
