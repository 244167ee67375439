"""Foundry Local's PromptTemplate, derived from the checkpoint's own chat template by rendering it. Pure.

The form has one piece a role and `{Content}` in it; "prompt" is a user's piece with the opening of the answer:

    {"system": "<|im_start|>system\\n{Content}<|im_end|>", "user": ..., "assistant": ...,
     "prompt": "<|im_start|>user\\n{Content}<|im_end|>\\n<|im_start|>assistant"}

Written one after another, the pieces of a conversation reproduce the template's own rendering of it, except for:
* whitespace before the first piece, between two pieces and after the last (pieces have none at their ends);
* a beginning-of-text token, which belongs to the whole text and to no turn;
* whitespace at the ends of a message, which some templates cut off;
* what some templates write first when a conversation has no system message (the note says so).
Every derivation is checked against renderings of several conversations before it is given out.
"""

import re
from dataclasses import dataclass
from datetime import datetime

from olivepress.checkpoints.chat_template import ChatTemplate, Message
from olivepress.errors import BadCheckpoint

CONTENT = "{Content}"
SHOWN_CHARACTERS = 120
OTHER_DAY = datetime(2034, 11, 27, 18, 29, 31)
# What looks like one token is compared as one, so that "</s>" and "<s>" have no ">" in common.
TOKEN_LIKE = r"<\|[^|<>\s]+\|>|</?[A-Za-z_][A-Za-z0-9_]*>|\[/?[A-Z_]+\]"


class NotExpressible(Exception):
    """The template does something that the form cannot say; never leaves this module."""


@dataclass(frozen=True)
class Derivation:
    """A prompt template, or None and the reason; with a template, `note` says what it does not carry."""

    template: dict[str, str] | None
    note: str | None


@dataclass(frozen=True)
class _Turn:
    """What a template writes before and after the text of one role's message."""

    before: str
    after: str

    @property
    def piece(self) -> str:
        return (self.before + CONTENT + self.after).strip()


def derive_prompt_template(chat_template: ChatTemplate) -> Derivation:
    """The prompt template in Foundry Local's form.

    Method: conversations with marker texts are rendered; what stands between two markers is the end of one turn and
    the start of the next, and comparing such stretches from several conversations shows where to cut.
    """
    try:
        return _derive(chat_template)
    except NotExpressible as error:
        return Derivation(None, str(error))
    except BadCheckpoint as error:
        return Derivation(None, f"{error} (for a plain conversation of a user and an assistant)")


def _derive(chat_template: ChatTemplate) -> Derivation:
    _refuse_dates(chat_template)
    user, assistant, opening = _turns_of_user_and_assistant(chat_template)
    system = _system_turn(chat_template, user)
    template = {"user": user.piece, "assistant": assistant.piece, "prompt": _Turn(user.before, opening).piece}
    if system is not None:
        template = {"system": system.piece} | template
    head = _verify(chat_template, template)
    notes = []
    if system is None:
        notes.append("the chat template refuses a system message, so there is no piece for one")
    if head:
        notes.append(
            "where a conversation has no system message the chat template first writes its own text, which this form "
            f"cannot carry: {_shown(head)}"
        )
    return Derivation(template, "; ".join(notes) or None)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _conversation(roles: str, text: str = "olivepress{0}marker") -> list[Message]:
    """Messages of the roles named by their first letters, such as "sua"; `{0}` in the text becomes their place."""
    names = {"s": "system", "u": "user", "a": "assistant"}
    return [_message(names[letter], text.replace("{0}", f"{place:02d}")) for place, letter in enumerate(roles)]


def _stretches(chat_template: ChatTemplate, roles: str, *, opened: bool = True) -> list[str]:
    """What the template writes before, between and after the marker texts: one stretch more than roles.

    Raises:
        BadCheckpoint: the template refuses this conversation.
        NotExpressible: a message's text is missing, moved or repeated.
    """
    messages = _conversation(roles)
    rest = chat_template.render(messages, add_generation_prompt=opened)
    stretches = []
    for message in messages:
        before, found, rest = rest.partition(message["content"])
        if not found or message["content"] in rest:
            raise NotExpressible(f"the chat template does not write each {message['role']} message once, in order")
        stretches.append(before)
    return [*stretches, rest]


def _refuse_dates(chat_template: ChatTemplate) -> None:
    messages = _conversation("u")
    if chat_template.render(messages) != chat_template.render(messages, day=OTHER_DAY):
        raise NotExpressible("the chat template writes the present date into each conversation")


def _turns_of_user_and_assistant(chat_template: ChatTemplate) -> tuple[_Turn, _Turn, str]:
    """The user's turn, the assistant's in the middle of a conversation, and what follows the last question."""
    first, answer, question, later_answer, later_question, end = _stretches(chat_template, "uauau")
    if (answer, question) != (later_answer, later_question):
        raise NotExpressible("the chat template writes later turns differently from earlier ones")
    before_user = _without_bos(chat_template, first)
    if not question.endswith(before_user):
        # Something of the template's own comes first; then an answer's end shows where the user's turn starts.
        answer_end = _stretches(chat_template, "ua", opened=False)[-1]
        before_user = question[len(_common_start(chat_template, question, answer_end)) :]
        if not first.endswith(before_user):
            raise NotExpressible("the chat template writes the first question differently from later ones")
    after_user = _after_user(chat_template, answer, before_user)
    if not end.startswith(after_user):
        raise NotExpressible("the chat template ends the last question differently from earlier ones")
    after_assistant = question[: len(question) - len(before_user)]
    return _Turn(before_user, after_user), _Turn(answer[len(after_user) :], after_assistant), end


def _after_user(chat_template: ChatTemplate, answer: str, before_user: str) -> str:
    """What ends a user's turn, where `answer` is that and the start of the assistant's."""
    try:
        between_users = _stretches(chat_template, "uu", opened=False)[1]
    except (BadCheckpoint, NotExpressible):
        between_users = ""
    if between_users.endswith(before_user):
        after_user = between_users[: len(between_users) - len(before_user)]
        if after_user and answer.startswith(after_user):
            return after_user
    return _common_start(chat_template, answer, _stretches(chat_template, "u", opened=False)[-1])


def _system_turn(chat_template: ChatTemplate, user: _Turn) -> _Turn | None:
    """The system message's turn; None where the template refuses one.

    Raises:
        NotExpressible: the message is dropped, or becomes part of another turn.
    """
    messages = _conversation("su")
    try:
        rendered = chat_template.render(messages)
    except BadCheckpoint:
        return None
    if messages[0]["content"] not in rendered:
        raise NotExpressible("the chat template drops the system message")
    first, between, _ = _stretches(chat_template, "su")
    if not between.endswith(user.before) or (not user.before and not between.strip()):
        raise NotExpressible("the chat template merges the system message into the first question")
    return _Turn(_without_bos(chat_template, first), between[: len(between) - len(user.before)])


def _verify(chat_template: ChatTemplate, template: dict[str, str]) -> str:
    """Check the pieces against renderings; returns what the template writes first where there is no system message."""
    text = "Text {0}: Ünï <b> & \"q\" 'a' \\n {curly} {{ x }} 漢\n\n  indented"
    head = ""
    for roles in ("u", "uau", "uauau", *(("su", "suau", "suauau") if "system" in template else ())):
        messages = _conversation(roles, text)
        pieces = [template[message["role"]] for message in messages[:-1]] + [template["prompt"]]
        filled = [piece.replace(CONTENT, message["content"]) for piece, message in zip(pieces, messages, strict=True)]
        pattern = r"(?P<head>.*?)\s*" + r"\s*".join(re.escape(piece) for piece in filled) + r"\s*"
        match = re.fullmatch(pattern, chat_template.render(messages), flags=re.DOTALL)
        if match is None:
            raise NotExpressible("the chat template does not write every turn in the same way")
        written = _without_bos(chat_template, match["head"]).strip()
        if written and ("s" in roles or (head and written != head)):
            raise NotExpressible(f"the chat template opens each conversation with {_shown(written)}")
        head = head or written
    return head


def _without_bos(chat_template: ChatTemplate, text: str) -> str:
    """The text without a beginning-of-text token; one that also stands elsewhere (SmolLM2, Llama 2) opens turns."""
    bos = chat_template.special_tokens.get("bos_token", "")
    rendered = chat_template.render(_conversation("uau")) if bos else ""
    return text.removeprefix(bos) if rendered.count(bos) == 1 else text


def _common_start(chat_template: ChatTemplate, one: str, other: str) -> str:
    """The longest common start that cuts no token in two."""
    tokens = "|".join(map(re.escape, sorted(filter(None, chat_template.added_tokens), key=len, reverse=True)))
    atoms = re.compile(f"{tokens}|{TOKEN_LIKE}|." if tokens else f"{TOKEN_LIKE}|.", flags=re.DOTALL)
    common: list[str] = []
    for mine, theirs in zip(atoms.findall(one), atoms.findall(other), strict=False):
        if mine != theirs:
            break
        common.append(mine)
    return "".join(common)


def _shown(text: str) -> str:
    short = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
    return '"' + short.replace("\n", "\\n") + '"'
