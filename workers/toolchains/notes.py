"""What a step has to tell of a model that is no reason to refuse it: into its log, and into its result."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

_open: list[list[str]] = []


def note(sentence: str) -> None:
    """Write a sentence into the log and into the notes that are being collected, once."""
    log.info("note: %s", sentence)
    for notes in _open:
        if sentence not in notes:
            notes.append(sentence)


@contextmanager
def collected() -> Iterator[list[str]]:
    """The notes of this block: a result that is remembered tells them to the jobs that reuse it."""
    notes: list[str] = []
    _open.append(notes)
    try:
        yield notes
    finally:
        _open.remove(notes)
