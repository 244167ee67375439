"""Reference: run the source checkpoint in torch once; what it says is what every artifact of it is held against."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from olivepress.chat_template import Message
from olivepress.recipes import Precision
from workers.measures.domain_prompts import DEFAULT_NEW_TOKENS, messages_of
from workers.measures.held_out import TOKENS_AT_MOST, WINDOW_TOKENS, held_out_text
from workers.measures.reference_file import ANSWERS, HELD_OUT, Answer, Reference, Section, write_reference
from workers.measures.tokenizer_agreement import SAMPLES
from workers.steps.context import StepContext
from workers.steps.convert import plain_source, refuse_changed
from workers.toolchains.source_model import SourceModel, open_source, section_of

DEFAULT_PENALTY = 1.1
ANSWER_BUDGET_S = 180.0
"""For the greedy answers together; what is not asked by then is told as not asked."""
ANSWER_POSITIONS = 768
"""Tokens of answers that are compared one by one; of the questions behind, only the texts are."""
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
    reference = Reference(facts, answers, yardsticks, (*sections, *answered), weights, notes if not_asked else ())
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


def _answers(
    source: SourceModel, spec: dict[str, Any], context: StepContext
) -> tuple[tuple[Answer, ...], tuple[Section, ...]]:
    """Every conversation as the source frames it, with its answer as far as time allows; and their sections."""
    asked: list[tuple[Sequence[Message], int]] = [(sample, DEFAULT_NEW_TOKENS) for sample in SAMPLES]
    asked += [(messages_of(prompt), prompt.get("max_new_tokens") or DEFAULT_NEW_TOKENS) for prompt in spec["prompts"]]
    penalty = spec.get("repetition_penalty") or DEFAULT_PENALTY
    until = time.monotonic() + ANSWER_BUDGET_S
    answers: list[Answer] = []
    sections: list[Section] = []
    for place, (messages, new_tokens) in enumerate(asked):
        context.report_progress("asking the source", READ + (ANSWERED - READ) * place / len(asked))
        answer, said = _asked(source, messages, min(new_tokens, source.context_length), penalty, until)
        answers.append(answer)
        if said and sum(len(section.distribution) for section in sections) < ANSWER_POSITIONS and answer.tokens:
            sections.append(section_of(source, ANSWERS, [*answer.tokens, *said], len(answer.tokens)))
    return tuple(answers), tuple(sections)


def _asked(
    source: SourceModel, messages: Sequence[Message], new_tokens: int, penalty: float, until: float
) -> tuple[Answer, list[int]]:
    framed = source.frame(messages)
    plain = tuple(dict(message) for message in messages)
    if framed is None:
        return Answer(plain, None, None, None), []
    text, tokens = framed
    room = source.context_length - len(tokens)
    if not tokens or room < 1 or time.monotonic() > until:
        return Answer(plain, text, tuple(tokens), None), []
    said = source.answer(tokens, min(new_tokens, room), penalty)
    return Answer(plain, text, tuple(tokens), source.decode(said)), said
