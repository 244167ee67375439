"""Text of a team's own that calibrated quantization learns from: its form, how a file of it is read, who needs it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from olivepress.errors import BadManifest
from olivepress.recipes.recipe import CALIBRATED_PASSES, Recipe
from olivepress.strict_model import Message, Strict, describe

MAX_ENTRIES = 4096
MAX_BYTES = 8 * 2**20
# Plain text has no entries of its own: paragraphs are put together until they have so many characters.
PIECE_CHARACTERS = 4000
JSON_LINES = (".jsonl", ".ndjson", ".json")
KEYS = ("text", "prompt", "completion", "messages")
FORM = "one JSON object a line, with 'text', 'prompt' or 'messages'"


class CalibrationEntry(Strict):
    """A piece of text as it is; or a chat, which the checkpoint's own chat template turns into text.

    `prompt`, with the `completion` that answers it where there is one, is short for a chat of one or two messages.
    """

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)] | None = None

    @model_validator(mode="after")
    def _check(self) -> "CalibrationEntry":
        if sum(part is not None for part in (self.text, self.prompt, self.messages)) != 1:
            raise ValueError("an entry has one of: text, prompt, messages")
        if self.completion is not None and self.prompt is None:
            raise ValueError("completion answers a prompt; add the prompt, or write text")
        return self


def _check_size(entries: list[CalibrationEntry]) -> list[CalibrationEntry]:
    size = sum(len(entry.model_dump_json(exclude_none=True).encode()) for entry in entries)
    if size > MAX_BYTES:
        raise ValueError(f"calibration text of {size} bytes is more than the {MAX_BYTES} that are taken; {_FEWER}")
    return entries


_FEWER = "give a part of it: a few hundred typical texts are enough"
Calibration = Annotated[
    list[CalibrationEntry], Field(min_length=1, max_length=MAX_ENTRIES), AfterValidator(_check_size)
]


def check_calibration(recipe: Recipe, has_calibration: bool) -> None:
    """Raise unless a job of this recipe has what its passes learn from.

    Raises:
        BadManifest: a pass of the recipe needs calibration text, and there is none.
    """
    if not recipe.needs_calibration or has_calibration:
        return
    name = next(one["type"] for one in recipe.olive_passes.before if one["type"].lower() in CALIBRATED_PASSES)
    raise BadManifest(
        f"the recipe '{recipe.name}' runs {name}, which learns from text of the fine-tune's domain, and there is none; "
        "add 'calibration: FILE' to the manifest or the checkpoint, or --calibration FILE to the command: JSON lines "
        "or plain text of your own, for no data set is fetched"
    )


def read_calibration(path: Path) -> list[dict[str, Any]]:
    """Calibration text from a file: JSON lines (.jsonl, .ndjson, .json), else plain text.

    Of a line's keys only those of `CalibrationEntry` are taken, so that training data and domain prompts can be given
    as they are.

    Raises:
        BadManifest: the file is missing, too large or empty, or a line is wrong (named by its number).
    """
    text = _text_of(path)
    if path.suffix.lower() in JSON_LINES:
        entries = [_entry(line, f"{path} line {number}") for number, line in _lines(text)]
    else:
        entries = [{"text": piece} for piece in _pieces(text)]
    if not entries:
        raise BadManifest(f"{path} holds no calibration text; write {FORM}, or plain text")
    if len(entries) > MAX_ENTRIES:
        raise BadManifest(f"{path} has {len(entries)} entries, the most is {MAX_ENTRIES}; {_FEWER}")
    return entries


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise BadManifest(
                f"the calibration file {path} has more than the {MAX_BYTES} bytes that are taken; {_FEWER}"
            )
        return content.decode("utf-8-sig")
    except OSError as error:
        raise BadManifest(f"cannot read the calibration file {path}: {error.strerror}; check the path") from None
    except UnicodeDecodeError as error:
        raise BadManifest(
            f"the calibration file {path} is no UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines: JSON strings may hold the line separators that it cuts at.
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _entry(line: str, place: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadManifest(f"{place} is no JSON: {error.msg}; write {FORM}") from None
    known = {key: values[key] for key in KEYS if values.get(key) is not None} if isinstance(values, dict) else {}
    if not known:
        raise BadManifest(f"{place} has no text; write {FORM}")
    try:
        return CalibrationEntry.model_validate(known).model_dump(exclude_none=True)
    except ValidationError as error:
        raise BadManifest(f"{place}: {describe(error)}") from None


def _pieces(text: str) -> Iterator[str]:
    """Paragraphs, put together into pieces of PIECE_CHARACTERS; a longer paragraph is a piece of its own."""
    piece = ""
    for paragraph in re.split(r"\n\s*\n", text):
        if not paragraph.strip():
            continue
        if piece and len(piece) + len(paragraph) > PIECE_CHARACTERS:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph.strip()}" if piece else paragraph.strip()
    if piece:
        yield piece
