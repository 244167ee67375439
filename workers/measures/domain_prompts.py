"""Answers to the fine-tune's own questions, held against what they must say.

Method: each conversation goes through the model's chat template and is answered greedily, as the published model would
answer with a temperature of 0 (its repetition penalty counts). An expectation's parts must all hold: `equals` (white
space at both ends aside), `contains` (case counts), `regex` (found anywhere, `.` matches line breaks), `json_schema`
(the answer is one JSON value of this shape). Unit: seconds from the messages to the whole answer, for each prompt.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from olivepress.checkpoints.chat_template import Message
from olivepress.errors import BadArtifact, BadManifest
from workers.toolchains.genai import GenaiModel

DEFAULT_NEW_TOKENS = 64


def _has_shape(answer: str, schema: Any) -> bool:
    # Loaded where it is needed: it would be a part of the memory that is measured beside it.
    from olivepress.json_shapes import has_shape

    return has_shape(answer, schema)


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "equals": lambda answer, wanted: answer.strip() == wanted.strip(),
    "contains": lambda answer, wanted: wanted in answer,
    "regex": lambda answer, wanted: re.search(wanted, answer, flags=re.DOTALL) is not None,
    "json_schema": _has_shape,
}


def messages_of(prompt: Mapping[str, Any]) -> list[Message]:
    """A domain prompt's conversation; a bare `prompt` is one question of the user."""
    messages = prompt.get("messages")
    return [dict(message) for message in messages] if messages else [{"role": "user", "content": prompt["prompt"]}]


def ask_all(
    model: GenaiModel, prompts: Sequence[Mapping[str, Any]], report_progress: Callable[[str, float], None]
) -> dict[str, Any]:
    """Ask every domain prompt.

    Returns:
        {"total", "with_expectation", "passed" (of those with one), "items": [{"name", "messages", "answer", "expect",
        "passed" (None without expectation), "seconds", "problem" (why there is no answer, or None)}]}

    Raises:
        BadManifest: an expectation is of a kind that is not known.
    """
    return summed(ask_some(model, prompts, report_progress))


def ask_some(
    model: GenaiModel,
    prompts: Sequence[Mapping[str, Any]],
    report_progress: Callable[[str, float], None],
    first: int = 0,
) -> list[dict[str, Any]]:
    """The items of these prompts, the first of which has the place `first` (0 is the first of all)."""
    items = []
    for place, prompt in enumerate(prompts):
        report_progress("asking the domain prompts", place / len(prompts))
        items.append(_ask(model, prompt, prompt.get("name") or f"prompt {first + place + 1}"))
    return items


def summed(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `ask_all` returns, of items that were asked one by one."""
    judged = [item for item in items if item["passed"] is not None]
    return {
        "total": len(items),
        "with_expectation": len(judged),
        "passed": sum(item["passed"] for item in judged),
        "items": list(items),
    }


def _ask(model: GenaiModel, prompt: Mapping[str, Any], name: str) -> dict[str, Any]:
    messages = messages_of(prompt)
    expected = {kind: wanted for kind, wanted in (prompt.get("expect") or {}).items() if wanted is not None}
    started = time.perf_counter()
    answer, problem = "", None
    try:
        tokens = model.encode(model.prompt(messages))
        answer = model.generate(tokens, prompt.get("max_new_tokens") or DEFAULT_NEW_TOKENS).text
    except BadArtifact as error:
        # A system message that the template refuses, a prompt longer than the context: one prompt's failure.
        problem = str(error)
    return {
        "name": name,
        "messages": messages,
        "answer": answer,
        "expect": expected or None,
        "passed": (problem is None and meets(answer, expected)) if expected else None,
        "seconds": round(time.perf_counter() - started, 4),
        "problem": problem,
    }


def meets(answer: str, expected: Mapping[str, Any]) -> bool:
    """Whether the answer is as expected in every part.

    Raises:
        BadManifest: a part is of an unknown kind, no regular expression or no JSON schema.
    """
    for kind, wanted in expected.items():
        if kind not in CHECKS:
            raise BadManifest(f"an expectation cannot be '{kind}'; use one of: {', '.join(CHECKS)}")
        try:
            if not CHECKS[kind](answer, wanted):
                return False
        except re.error as error:
            raise BadManifest(f"'{wanted}' is no regular expression: {error}") from error
    return True
