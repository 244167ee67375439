"""A chat template at work: does it form a chat, within limits, and what would a user of the model notice?"""

import re
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from olivepress.checkpoints.chat_template import Message
from olivepress.errors import BadCheckpoint
from workers.toolchains.library_edge import library_edge
from workers.toolchains.limits import within_limits

REPLACE_TEMPLATE = "put back the one that the model was trained with"
MESSAGE = "olivepress asks a question"
ANSWER = "and gets an answer"
SECOND = "then olivepress asks another"
RULE = "answer olivepress briefly"
LONGEST_CHARACTERS = 200_000
# How control tokens are usually written: <|im_start|>, <start_of_turn>, [INST].
CONTROL = re.compile(r"<\|[^<>|\s]{1,40}\|>|<(?:start|end)_of_\w{1,20}>|\[/?INST\]")


def try_template(source: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Render chats with the tokenizer's template, which stands in the file `source`.

    Returns:
        Notes: what is unusual and no reason to refuse.

    Raises:
        BadCheckpoint: it fails over a single question, loses it, or does not end.
    """
    question: list[Message] = [{"role": "user", "content": MESSAGE}]
    chat = _rendered(source, tokenizer, question)
    if "\0" in str(tokenizer.chat_template):
        raise BadCheckpoint(
            f"the chat template in {source} holds a zero byte, where engines end it; {REPLACE_TEMPLATE}"
        )
    if MESSAGE not in chat:
        raise BadCheckpoint(f"the chat template in {source} leaves out what the user says; {REPLACE_TEMPLATE}")
    if len(chat) > LONGEST_CHARACTERS:
        raise BadCheckpoint(
            f"the chat template in {source} makes {len(chat):,} characters of a question of {len(MESSAGE)}; "
            f"{REPLACE_TEMPLATE}"
        )
    return [
        *_foreign_tokens(source, tokenizer, chat),
        *_turns(source, tokenizer, question),
        *_system(source, tokenizer, question),
    ]


def _rendered(source: Path, tokenizer: PreTrainedTokenizerBase, messages: list[Message], begin: bool = True) -> str:
    problem, what_now = f"the chat template in {source} does not work", f"mend it, or {REPLACE_TEMPLATE}"

    def render() -> str:
        with library_edge(problem, what_now):
            chat = [dict(message) for message in messages]
            return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=begin))

    return within_limits(render, problem, what_now)


def _foreign_tokens(source: Path, tokenizer: PreTrainedTokenizerBase, chat: str) -> list[str]:
    cut = [
        text
        for text in dict.fromkeys(CONTROL.findall(chat))
        if len(tokenizer.encode(text, add_special_tokens=False)) > 1
    ]
    if not cut:
        return []
    return [
        f"the chat template in {source} writes '{cut[0]}', which is no token of the tokenizer; if the model was not "
        "trained that way, the template is another model's"
    ]


def _turns(source: Path, tokenizer: PreTrainedTokenizerBase, question: list[Message]) -> list[str]:
    turns = [*question, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": SECOND}]
    try:
        chat = _rendered(source, tokenizer, turns)
        bare = _rendered(source, tokenizer, turns, begin=False)
    except BadCheckpoint as refusal:
        return [f"a second question in one chat fails: {refusal}"]
    if lost := [text for text in (MESSAGE, ANSWER, SECOND) if text not in chat]:
        return [f"the chat template in {source} leaves out {len(lost)} of the 3 messages of a longer chat"]
    if chat == bare:
        return [f"the chat template in {source} does not begin an answer: add_generation_prompt changes nothing"]
    return []


def _system(source: Path, tokenizer: PreTrainedTokenizerBase, question: list[Message]) -> list[str]:
    try:
        chat = _rendered(source, tokenizer, [{"role": "system", "content": RULE}, *question])
    except BadCheckpoint:
        return [f"the chat template in {source} refuses a system message"]
    return [] if RULE in chat else [f"the chat template in {source} leaves out what a system message says"]
