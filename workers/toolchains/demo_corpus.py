"""What the demo's models learn from: Python's documentation, and the questions and answers in `olivepress/demo_data`.

The order is fixed, so that one version of Python gives one corpus.
"""

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from pydoc_data.topics import topics

DEMO_DATA = files("olivepress") / "demo_data"
# Modules that are pure Python, have long docstrings, and are in every Python since 3.11.
MODULES = (
    "abc", "argparse", "bisect", "calendar", "collections", "configparser", "contextlib", "copy", "csv", "dataclasses",
    "datetime", "decimal", "difflib", "doctest", "email.message", "enum", "fractions", "functools", "gettext", "glob",
    "heapq", "inspect", "ipaddress", "json", "linecache", "locale", "logging", "mimetypes", "optparse", "os", "pathlib",
    "pickle", "platform", "pprint", "queue", "random", "re", "reprlib", "sched", "shlex", "shutil", "smtplib", "socket",
    "socketserver", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit",
    "tokenize", "traceback", "types", "typing", "unittest.case", "unittest.mock", "urllib.parse", "urllib.request",
    "uuid", "warnings", "weakref", "zipfile",
)  # fmt: skip
LONGEST_SUMMARY = 200
SHORTEST_PARAGRAPH = 60
LEAST_LETTERS = 0.92


@dataclass(frozen=True)
class Lesson:
    """One fact: ways to ask for it, the answer, and the part of the answer that shows that it was understood."""

    questions: tuple[str, ...]
    answer: str
    expect: str


@dataclass(frozen=True)
class Corpus:
    """Texts to learn the language from, and (question, answer) pairs to learn the form of a chat from."""

    texts: list[str]
    chats: list[tuple[str, str]]


def documentation() -> Corpus:
    """The language reference that `help()` shows, and the docstrings of the standard library."""
    texts = [_prose(text) for _, text in sorted(topics.items())]
    chats = []
    for name, docstring in _docstrings():
        texts.append(_prose(docstring))
        summary = " ".join(docstring.partition("\n\n")[0].split())
        if summary.endswith(".") and len(summary) <= LONGEST_SUMMARY:
            chats.append((f"What is {name}?", summary))
    return Corpus([text for text in texts if text], chats)


def lessons(fine_tune: str) -> list[Lesson]:
    """The questions and answers of one fine-tune, from `olivepress/demo_data/<fine_tune>.jsonl`."""
    lines = (DEMO_DATA / f"{fine_tune}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Lesson(tuple(row["questions"]), row["answer"], row["expect"]) for row in rows]


def _prose(text: str) -> str:
    """The paragraphs that are sentences, each on one line: no tables, grammars, code or headings."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    return "\n".join(paragraph for paragraph in paragraphs if _is_prose(paragraph))


def _is_prose(paragraph: str) -> bool:
    letters = sum(character.isalpha() or character in " .," for character in paragraph)
    return len(paragraph) >= SHORTEST_PARAGRAPH and letters >= LEAST_LETTERS * len(paragraph)


def _docstrings() -> Iterator[tuple[str, str]]:
    """Dotted name and docstring of each module, class and function, read from the sources without running them."""
    for module in MODULES:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            continue  # a Python without this module, or with it compiled only, learns from the others
        source = importlib.util.decode_source(Path(spec.origin).read_bytes())
        yield from _docstrings_in(ast.parse(source), module)


def _docstrings_in(node: ast.Module | ast.ClassDef | ast.FunctionDef, name: str) -> Iterator[tuple[str, str]]:
    docstring = ast.get_docstring(node)
    if docstring:
        yield name, docstring
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
            yield from _docstrings_in(child, f"{name}.{child.name}")
