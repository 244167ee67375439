"""Figures in words for people: bytes, times, shares; and texts with their differences marked."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import SequenceMatcher

NOTHING = "–"
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
WORDS_COMPARED = 2000


@dataclass(frozen=True)
class Stretch:
    """A part of a text, and whether the other text has it too."""

    text: str
    is_same: bool


def size(value: float | None) -> str:
    """Bytes: 15.3 MB."""
    if value is None:
        return NOTHING
    for unit_bytes, unit in UNITS:
        if abs(value) >= unit_bytes:
            return f"{digits(value / unit_bytes)} {unit}"
    return f"{value:.0f} B"


def digits(value: float | None) -> str:
    """A number with three digits that tell something."""
    if value is None:
        return NOTHING
    if value != 0 and (abs(value) < 0.001 or abs(value) >= 1e6):
        return f"{value:.3g}"
    if abs(value) < 1:
        return f"{value:.3g}"
    return f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1f}" if abs(value) < 99.95 else f"{value:.0f}"


def share(value: float | None) -> str:
    """A share in percent: 97.2 %."""
    return NOTHING if value is None else f"{digits(100 * value)} %"


def day(moment: float | None) -> str:
    """Seconds since 1970 as a date and minute, UTC."""
    return NOTHING if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")


def marked(ours: str, theirs: str) -> tuple[list[Stretch], list[Stretch]]:
    """Both texts in stretches, those that the other has not marked; compared word by word."""
    one, other = _words(ours), _words(theirs)
    matcher = SequenceMatcher(None, one[:WORDS_COMPARED], other[:WORDS_COMPARED], autojunk=False)
    left: list[Stretch] = []
    right: list[Stretch] = []
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        left += _stretch(one[start:end], kind == "equal")
        right += _stretch(other[other_start:other_end], kind == "equal")
    left += _stretch(one[WORDS_COMPARED:], True)
    right += _stretch(other[WORDS_COMPARED:], True)
    return left, right


def _stretch(words: list[str], is_same: bool) -> Iterator[Stretch]:
    if words:
        yield Stretch("".join(words), is_same)


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)
