"""Replaces attributes of another library's modules and classes for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Replacement = tuple[Any, str, Any]


@contextmanager
def replaced(*replacements: Replacement) -> Iterator[None]:
    """Set (owner, attribute, value) for each replacement, and set back what was there before."""
    before = [(owner, name, owner.__dict__[name]) for owner, name, _ in replacements]
    try:
        for owner, name, value in replacements:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
