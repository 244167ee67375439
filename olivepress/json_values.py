"""Whether a value that came from YAML or JSON can be kept: only JSON's own kinds, and not too much of it. Pure."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

MOST_VALUES = 5000
MOST_CHARACTERS = 64 * 1024
DEEPEST = 24


def why_not_kept(value: Any) -> tuple[str, str] | None:
    """The place (a path with dots) and the reason why a value cannot be kept in a job's row; None if it can.

    YAML has dates, and aliases that make a small file endless; JSON has no NaN, and PostgreSQL no NUL.
    """
    left, characters = MOST_VALUES, 0
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    while waiting:
        place, item, depth = waiting.pop()
        left -= 1
        characters += len(item) if isinstance(item, str) else 0
        if left < 0 or characters > MOST_CHARACTERS or depth > DEEPEST:
            return "it", "is more than a recipe can hold; leave out what is not needed"
        if isinstance(item, Mapping):
            if not all(isinstance(key, str) and "\x00" not in key for key in item):
                return place or "it", "has a key that is no text; write text"
            characters += sum(map(len, item))
            waiting += [(f"{place}.{key}" if place else key, inner, depth + 1) for key, inner in item.items()]
        elif isinstance(item, list | tuple):
            waiting += [(place, inner, depth + 1) for inner in item]
        elif not _is_kept(item):
            return place, "is no JSON value; write text, numbers, true, false, lists and mappings"
    return None


def _is_kept(item: Any) -> bool:
    if isinstance(item, str):
        return "\x00" not in item and not any("\ud800" <= character <= "\udfff" for character in item)
    if isinstance(item, float):
        return isfinite(item)
    # Larger integers are not the same number in every reader of JSON.
    return item is None or isinstance(item, bool) or (isinstance(item, int) and abs(item) <= 2**53)
