"""The held-out text: prose, letters, law, talk, code, data and other languages, written for this and in no corpus.

It is read in windows, each from an empty context, so that a small context is no reason for another figure.
"""

from pathlib import Path

TEXT_FILE = Path(__file__).with_name("held_out.txt")
WINDOW_TOKENS = 256
TOKENS_AT_MOST = 1024


def held_out_text() -> str:
    """The whole text."""
    return TEXT_FILE.read_text(encoding="utf-8")
