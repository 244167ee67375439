"""Reference: run the source checkpoint in torch once; what it says is what every artifact of it is held against."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olivepress.checkpoints.chat_template import Message
from olivepress.recipes.recipe import Precision
from workers.measures.domain_prompts import DEFAULT_NEW_TOKENS, messages_of
from workers.measures.held_out import TOKENS_AT_MOST, WINDOW_TOKENS, held_out_text
from workers.measures.reference_file import ANSWERS, HELD_OUT, Answer, Reference, Section, write_reference
from workers.measures.tokenizer_agreement import FRAMED_ALONE, SAMPLES
from workers.steps.context import StepContext
from workers.steps.convert import plain_source, refuse_changed
from workers.toolchains.source_model import SourceModel, open_source, section_of

DEFAULT_PENALTY = 1.1
ANSWER_BUDGET_S = 60.0
"""For the greedy answers together; what is not asked by then is told as not asked."""
ASKED_AT_ONCE = 8
ANSWER_POSITIONS = 384
"""Tokens of answers that are compared one by one; of the questions behind, only the texts are."""
LOGITS_BYTES_AT_MOST = 2**28
"""Of one question with its answer: an engine gives the logits of the whole question, too."""
FP32_BYTES = 4
SHORTEST_WINDOW = 16
MERGED, OPENED, READ, ANSWERED = 0.1, 0.2, 0.4, 0.8


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """Write the reference into `context.output`.

    Args:
        spec: {"path": checkpoint, "base": directory of an adapter's base or None, "ingest": the result of the ingest
            step, "prompts": domain prompts, "repetition_penalty": that answers are given with (optional), "held_out":
            a text of the team's own instead of the common one (optional)}.

    Returns:
        {"positions": {"held_out", "answers"}, "answers": asked, "not_asked": for lack of time,
        "yardsticks": {name: mean KL}, "notes": [str]}

    Raises:
        BadCheckpoint: transformers cannot open the checkpoint.
        ConversionFailed: the adapter does not fit its base.
        CheckpointChanged: the files are not the ones that were ingested.
        DiskFull: no room in the workspace.
    """
    directory, base = Path(spec["path"]), Path(spec["base"]) if spec["base"] else None
    plain, _ = plain_source(directory, base, spec | {"build": {"precision": Precision.FP32.value}}, context)
    context.report_progress("opening the source", MERGED)
    source = open_source(plain)
    context.report_progress("reading the held-out text", OPENED)
    sections = _held_out(source, spec.get("held_out") or held_out_text())
    answers, answered = _answers(source, spec, context)
    facts = source.facts() | {"repetition_penalty": spec.get("repetition_penalty") or DEFAULT_PENALTY}
    weights = source.weight_print()
    yardsticks = source.measure_yardsticks(
        [*sections, *answered],
        lambda share: context.report_progress("rounding the source", ANSWERED + (1 - ANSWERED) * share),
    )
    not_asked = sum(answer.answer is None and answer.tokens is not None for answer in answers)
    notes = (f"{not_asked} conversations were not asked in torch, for {ANSWER_BUDGET_S:.0f} s were over",)
    framed = answers + _framed_alone(source)
    reference = Reference(facts, framed, yardsticks, (*sections, *answered), weights, notes if not_asked else ())
    # As convert does it: what is remembered for a content must have been read from it.
    refuse_changed(directory, spec["ingest"]["files"])
    if base is not None:
        refuse_changed(base, spec["ingest"]["base"]["files"])
    write_reference(reference, context.output)
    return {
        "positions": {
            HELD_OUT: sum(len(section.distribution) for section in sections),
            ANSWERS: sum(len(section.distribution) for section in answered),
        },
        "answers": len(answers) - not_asked,
        "not_asked": not_asked,
        "yardsticks": {name: yardstick.kl for name, yardstick in yardsticks.items()},
        "notes": list(reference.notes),
    }


def _held_out(source: SourceModel, text: str) -> tuple[Section, ...]:
    tokens = source.encode(text)[:TOKENS_AT_MOST]
    window = min(WINDOW_TOKENS, source.context_length)
    parts = [tokens[start : start + window] for start in range(0, len(tokens), window)]
    return tuple(section_of(source, HELD_OUT, part, 1) for part in parts if len(part) >= SHORTEST_WINDOW)


@dataclass
class _Conversation:
    """One that the source is asked, how it frames it, and what it says."""

    messages: Sequence[Message]
    new_tokens: int
    framed: tuple[str, list[int]] | None
    said: list[int] | None = None

    def answer(self, source: SourceModel) -> Answer:
        text, tokens = self.framed or (None, None)
        said = None if self.said is None else source.decode(self.said)
        return Answer(
            tuple(dict(message) for message in self.messages), text, None if tokens is None else tuple(tokens), said
        )


def _answers(
    source: SourceModel, spec: dict[str, Any], context: StepContext
) -> tuple[tuple[Answer, ...], tuple[Section, ...]]:
    """Every conversation as the source frames it, with its answer as far as time allows; and their sections."""
    asked = [_Conversation(sample, DEFAULT_NEW_TOKENS, source.frame(sample)) for sample in SAMPLES]
    for prompt in spec["prompts"]:
        messages = messages_of(prompt)
        new_tokens = prompt.get("max_new_tokens") or DEFAULT_NEW_TOKENS
        asked.append(_Conversation(messages, new_tokens, source.frame(messages)))
    penalty = spec.get("repetition_penalty") or DEFAULT_PENALTY
    _ask(source, asked, penalty, lambda share: context.report_progress("asking the source", _between(share)))
    answers = tuple(each.answer(source) for each in asked)
    return answers, _sections(source, asked)


def _framed_alone(source: SourceModel) -> tuple[Answer, ...]:
    """Conversations that nobody asks: how the source frames them."""
    return tuple(_Conversation(sample, 0, source.frame(sample)).answer(source) for sample in FRAMED_ALONE)


def _between(share: float) -> float:
    return READ + (ANSWERED - READ) * share


def _ask(source: SourceModel, asked: Sequence[_Conversation], penalty: float, report: Callable[[float], None]) -> None:
    """Ask those that have room for an answer, some at once: first the first ones, then those of like length."""
    until = time.monotonic() + ANSWER_BUDGET_S
    with_room = [each for each in asked if each.framed and 0 < len(each.framed[1]) < source.context_length]
    first, rest = with_room[:ASKED_AT_ONCE], with_room[ASKED_AT_ONCE:]
    rest.sort(key=lambda each: (each.new_tokens, len(each.framed[1]) if each.framed else 0))
    batches = [first] if first else []
    batches += [rest[start : start + ASKED_AT_ONCE] for start in range(0, len(rest), ASKED_AT_ONCE)]
    for place, batch in enumerate(batches):
        report(place / len(batches))
        prompts = [each.framed[1] for each in batch if each.framed]
        room = source.context_length - max(map(len, prompts))
        left_s = until - time.monotonic()
        if left_s <= 0:
            return
        new_tokens = max(each.new_tokens for each in batch)
        said = source.answers(prompts, min(new_tokens, room), penalty, left_s)
        for each, tokens in zip(batch, said, strict=True):
            each.said = None if tokens is None else tokens[: each.new_tokens]


def _sections(source: SourceModel, asked: Sequence[_Conversation]) -> tuple[Section, ...]:
    """The answers as stretches that are compared token by token, until ANSWER_POSITIONS are reached."""
    sections: list[Section] = []
    row_bytes = FP32_BYTES * source.vocabulary_size
    for each in asked:
        if not each.said or not each.framed or sum(map(_positions, sections)) >= ANSWER_POSITIONS:
            continue
        tokens = [*each.framed[1], *each.said]
        if len(tokens) * row_bytes <= LOGITS_BYTES_AT_MOST:
            sections.append(section_of(source, ANSWERS, tokens, len(each.framed[1])))
    return tuple(sections)


def _positions(section: Section) -> int:
    return len(section.distribution)
