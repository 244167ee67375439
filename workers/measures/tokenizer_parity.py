"""Whether messages become the same prompt three ways: transformers, onnxruntime-genai, Foundry's PromptTemplate.

Unit: conversations. Method: sample conversations and the job's own are framed by the source's tokenizer in
transformers (from the reference; without one by the artifact's own files, read with jinja2 and `tokenizers`), by the
artifact's own files, by the engine, and by the PromptTemplate of inference_model.json (before publishing: the one that
is derived for it). The first two must be equal, token by token: otherwise tokenizer or template are not the
source's. The engine's text must be equal; its tokens may differ where it is known to cut otherwise (see
workers.measures.tokenizer_agreement), as far as ENGINE_SHARE; the PromptTemplate's text may differ in white space
between turns and in a beginning that it cannot carry (see olivepress.foundry.prompt_template).
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from olivepress.checkpoints.chat_template import DAY, ChatTemplate, Message
from olivepress.errors import BadCheckpoint
from olivepress.foundry.inference_model import INFERENCE_MODEL_FILE
from olivepress.foundry.prompt_template import CONTENT, OTHER_DAY, derive_prompt_template
from workers.measures.held_out import held_out_text
from workers.measures.reference_file import Answer, Reference
from workers.measures.tokenizer_agreement import FRAMED_ALONE, Framed, difference
from workers.measures.tokenizer_words import words_print
from workers.toolchains.tokenizer_file import tokenizer_print

ENGINE_SHARE = 0.2
TOKENS_COMPARED = 2000
SHOWN_CHARACTERS = 160


def compare_three_ways(
    artifact: Path,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    framed: Sequence[Framed],
    reference: Reference | None,
) -> dict[str, Any]:
    """Hold the ways of framing these conversations against each other.

    Args:
        framed: by the engine, one each.
        reference: whose tokenizer, and whose answers to the same messages, are compared; or None.

    Returns:
        {"status": "passed" | "failed", "compared", "source", "engine", "prompt_template": {"equal": conversations,
        "of": conversations, "first_difference": str | None} each, "problem": str | None, "notes": [str]}
    """
    own = [_own(template, tokenizer, messages) for messages in conversations]
    all_own = own + [_own(template, tokenizer, messages) for messages in FRAMED_ALONE]
    source = _against_source(
        all_own, [*conversations, *FRAMED_ALONE], tokenizer, reference.answers if reference else None
    )
    engine, engine_problem = _against_engine(own, template, tokenizer, conversations, framed)
    pieces, note = _pieces(artifact, template)
    prompt_template = _against_pieces(own, conversations, pieces)
    problems = [
        _other_tokenizer(tokenizer, reference),
        _problem("tokenizer or template are not the source's", source),
        engine_problem,
        _problem(f"{INFERENCE_MODEL_FILE} frames conversations otherwise than the chat template", prompt_template),
        _missing_pieces(pieces, template),
    ]
    notes = ["the source was not at hand: only the artifact's own files were compared"] if source is None else []
    notes += [note] if note else []
    if engine["first_difference"] and not engine_problem:
        notes.append(f"the engine cuts some text otherwise: {engine['first_difference']}")
    return {
        "status": "failed" if any(problems) else "passed",
        "compared": len(own),
        "source": source,
        "engine": engine,
        "prompt_template": prompt_template,
        "problem": "; ".join(filter(None, problems)) or None,
        "notes": notes,
    }


def _own(template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message]) -> Framed:
    try:
        text = template.render(messages)
    except BadCheckpoint:
        return Framed(None)
    return Framed(text, tuple(tokenizer.encode(text, add_special_tokens=False).ids))


def _result(differences: Sequence[str | None]) -> dict[str, Any]:
    return {
        "equal": sum(found is None for found in differences),
        "of": len(differences),
        "first_difference": next(filter(None, differences), None),
    }


def _problem(words: str, result: Mapping[str, Any] | None) -> str | None:
    return f"{words}: {result['first_difference']}" if result and result["first_difference"] else None


def _other_tokenizer(tokenizer: Tokenizer, reference: Reference | None) -> str | None:
    """How the tokenizer as a whole differs from the source's: few conversations have all of its words."""
    wanted = reference.facts.get("tokenizer") if reference else None
    if not wanted:
        return None
    own = tokenizer_print(tokenizer, held_out_text())
    other = [name for name, digest in wanted.items() if own.get(name) != digest]
    words = reference.facts.get("tokenizer_words") if reference else None
    if words and not other and words_print(tokenizer) not in words:
        other.append("cutting of its own words and of rare characters")
    return f"the tokenizer is not the source's: another {', '.join(other)}" if other else None


def _against_source(
    own: Sequence[Framed],
    conversations: Sequence[Sequence[Message]],
    tokenizer: Tokenizer,
    answers: Sequence[Answer] | None,
) -> dict[str, Any] | None:
    if answers is None:
        return None
    by_messages = {_key(answer.messages): answer for answer in answers}
    differences = []
    for mine, messages in zip(own, conversations, strict=True):
        answer = by_messages.get(_key(messages))
        if answer is not None:
            wanted = Framed(answer.text, answer.tokens or ())
            differences.append(difference(mine, wanted, tokenizer, "the source"))
    return _result(differences)


def _against_engine(
    own: Sequence[Framed],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    framed: Sequence[Framed],
) -> tuple[dict[str, Any], str | None]:
    """The engine's framing, and what about it is wrong."""
    differences, problem = [], None
    for mine, theirs, messages in zip(own, framed, conversations, strict=True):
        wanted = _today(template, tokenizer, messages) if _is_dated(template, messages) else mine
        found = difference(theirs, wanted, tokenizer, "the tokenizer's own files")
        differences.append(found)
        if found and (found.startswith("text") or _apart(theirs.tokens, wanted.tokens) > ENGINE_SHARE):
            problem = problem or f"the engine frames conversations otherwise than the tokenizer's own files: {found}"
    return _result(differences), problem


def _is_dated(template: ChatTemplate, messages: Sequence[Message]) -> bool:
    try:
        return template.render(messages, day=DAY) != template.render(messages, day=OTHER_DAY)
    except BadCheckpoint:
        return False


def _today(template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message]) -> Framed:
    text = template.render(messages, day=datetime.now())
    return Framed(text, tuple(tokenizer.encode(text, add_special_tokens=False).ids))


def _apart(one: Sequence[int], other: Sequence[int]) -> float:
    """Share of tokens that the two do not have in common."""
    matcher = SequenceMatcher(None, one[:TOKENS_COMPARED], other[:TOKENS_COMPARED], autojunk=False)
    return 1 - matcher.ratio()


def _pieces(artifact: Path, template: ChatTemplate) -> tuple[Mapping[str, str] | None, str | None]:
    """The PromptTemplate, and why there is none or what it does not carry."""
    file = artifact / INFERENCE_MODEL_FILE
    derived = derive_prompt_template(template)
    if not file.is_file():
        return derived.template, derived.note
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        pieces = content.get("PromptTemplate")
    except (ValueError, AttributeError):
        pieces = None
    if isinstance(pieces, dict) and "prompt" in pieces:
        return pieces, derived.note
    return None, f"{INFERENCE_MODEL_FILE} has no PromptTemplate"


def _missing_pieces(pieces: Mapping[str, str] | None, template: ChatTemplate) -> str | None:
    derived = derive_prompt_template(template).template or {}
    missing = sorted(derived.keys() - pieces.keys()) if pieces is not None else []
    return f"the PromptTemplate of {INFERENCE_MODEL_FILE} has no piece for: {', '.join(missing)}" if missing else None


def _against_pieces(
    own: Sequence[Framed], conversations: Sequence[Sequence[Message]], pieces: Mapping[str, str] | None
) -> dict[str, Any] | None:
    if pieces is None:
        return None
    differences = []
    for mine, messages in zip(own, conversations, strict=True):
        roles = [message["role"] for message in messages]
        if mine.text is None or not roles or roles[-1] != "user" or not set(roles) <= {*pieces}:
            continue
        differences.append(_difference_of_pieces(mine.text, messages, pieces))
    return _result(differences)


def _difference_of_pieces(text: str, messages: Sequence[Message], pieces: Mapping[str, str]) -> str | None:
    chosen = [pieces[message["role"]] for message in messages[:-1]] + [pieces["prompt"]]
    filled = [
        [words.strip() for words in (before, message["content"], after)]
        for message, piece in zip(messages, chosen, strict=True)
        for before, _, after in [piece.partition(CONTENT)]
    ]
    # White space may be any between turns and at the ends of a message, where templates cut it; within it counts.
    pattern = r".*?" + r"\s*".join(re.escape(words) for turn in filled for words in turn) + r"\s*"
    if re.fullmatch(pattern, text, flags=re.DOTALL):
        return None
    ours, theirs = (json.dumps(shown[:SHOWN_CHARACTERS], ensure_ascii=False) for shown in (_joined(filled), text))
    return f"text: {ours} where the chat template writes {theirs}"


def _joined(turns: Sequence[Sequence[str]]) -> str:
    return "".join(words for turn in turns for words in turn)


def _key(messages: Sequence[Message]) -> str:
    return json.dumps([[message["role"], message["content"]] for message in messages])
