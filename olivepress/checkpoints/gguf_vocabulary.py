"""The tokenizer that a GGUF file carries: its tokens, merges and special tokens, checked against each other. Pure.

Only byte-level vocabularies whose way of cutting text is known are read: for the others a file does not say all that
their tokenizer does.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from olivepress.checkpoints.gguf_header import GgufFile, damaged
from olivepress.errors import BadCheckpoint

BYTE_LEVEL = "gpt2"
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UNUSED = re.compile(r"\[PAD\d+\]")
TEMPLATE_KEY = "tokenizer.chat_template"
PUT_TOKENIZER = "put the tokenizer of the checkpoint that it was made from beside it: tokenizer.save_pretrained(...)"


@dataclass(frozen=True)
class Cut:
    """How a text is cut before its merges."""

    pattern: str | None = None
    """None: the one of GPT-2, which byte-level tokenizers have built in."""
    digits_alone: bool = False
    """Whether every digit is cut off first."""
    composes: bool = False
    """Whether letters and their accents are put together first (NFC)."""
    whole_words_first: bool = False
    """Whether a word that is a token as a whole is that token, whatever its merges give."""


# What `tokenizer.ggml.pre` may say. Patterns by the tokenizer.json of the models that it is named after.
CUTS = {
    "qwen2": Cut(QWEN2_SPLIT, composes=True),
    "deepseek-r1-qwen": Cut(QWEN2_SPLIT, composes=True),
    "llama-bpe": Cut(LLAMA3_SPLIT, whole_words_first=True),
    "llama3": Cut(LLAMA3_SPLIT, whole_words_first=True),
    "llama-v3": Cut(LLAMA3_SPLIT, whole_words_first=True),
    "tekken": Cut(TEKKEN_SPLIT, whole_words_first=True),
    "gpt-2": Cut(),
    "smollm": Cut(digits_alone=True),
    "starcoder": Cut(digits_alone=True),
    "refact": Cut(digits_alone=True),
}
NORMAL, CONTROL, USER_DEFINED, UNUSED_KIND = 1, 3, 4, 5
NAMED = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
STOPS = ("eos", "eot", "eom")


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level tokenizer."""

    cut: Cut
    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    special: tuple[int, ...]
    """Numbers of the tokens that are no text."""
    added: tuple[int, ...]
    """Numbers of the tokens that are text and are never taken apart."""
    named: dict[str, str]
    """bos_token, eos_token, ... to the token."""
    adds_bos: bool


def has_vocabulary(file: GgufFile) -> bool:
    """Whether the file carries a tokenizer at all."""
    return isinstance(file.keys.get("tokenizer.ggml.model"), str)


def template_of(file: GgufFile) -> str | None:
    """The chat template that the file carries."""
    template = file.keys.get(TEMPLATE_KEY)
    return template if isinstance(template, str) and template else None


def stop_ids(file: GgufFile) -> list[int]:
    """Numbers of the tokens that end an answer, as far as the file says."""
    found = (file.keys.get(f"tokenizer.ggml.{name}_token_id") for name in STOPS)
    return sorted({value for value in found if type(value) is int})


def vocabulary_of(file: GgufFile) -> Vocabulary:
    """The tokenizer in the file.

    Raises:
        BadCheckpoint: there is none, it is of a kind that is not read, or its parts do not fit each other.
    """
    kind, pre = (file.keys.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind != BYTE_LEVEL or pre not in CUTS:
        what = f"of the kind '{kind}' (cut as '{pre}')" if kind else "missing"
        raise BadCheckpoint(
            f"the tokenizer in {file.path} is {what}, and read are those of the kind '{BYTE_LEVEL}' cut as "
            f"{', '.join(CUTS)}; {PUT_TOKENIZER}"
        )
    tokens = _texts(file, "tokens")
    kinds = file.keys.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    rows = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0
    if not isinstance(kinds, list) or len(kinds) != len(tokens) or not 0 < len(tokens) <= rows:
        raise damaged(file.path, f"it has {len(tokens):,} tokens, and not as many types or rows of embeddings")
    # The converter fills the vocabulary up to the rows of the embeddings.
    while tokens and kinds[len(tokens) - 1] == UNUSED_KIND and UNUSED.fullmatch(tokens[-1]):
        tokens.pop()
    if len(set(tokens)) != len(tokens):
        raise damaged(file.path, "one of its tokens stands twice", PUT_TOKENIZER)
    return Vocabulary(
        cut=CUTS[pre],
        tokens=tuple(tokens),
        merges=_merges(file, set(tokens)),
        special=tuple(number for number in range(len(tokens)) if kinds[number] == CONTROL),
        added=tuple(number for number in range(len(tokens)) if kinds[number] == USER_DEFINED),
        named=_named(file, tokens),
        # Where older files do not say, llama.cpp adds one for these.
        adds_bos=file.keys.get("tokenizer.ggml.add_bos_token", CUTS[pre].whole_words_first) is True,
    )


def _texts(file: GgufFile, name: str) -> list[str]:
    value = file.keys.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise damaged(file.path, f"'tokenizer.ggml.{name}' is no list of texts", PUT_TOKENIZER)
    return list(value)


def _merges(file: GgufFile, tokens: set[str]) -> tuple[tuple[str, str], ...]:
    merges = []
    for merge in _texts(file, "merges"):
        first, _, second = merge.partition(" ")
        if first not in tokens or second not in tokens or first + second not in tokens:
            raise damaged(file.path, f"the merge '{merge[:60]}' is not of its tokens", PUT_TOKENIZER)
        merges.append((first, second))
    return tuple(merges)


def _named(file: GgufFile, tokens: Sequence[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for field, key in NAMED.items():
        number: Any = file.keys.get(f"tokenizer.ggml.{key}_token_id")
        if number is None:
            continue
        if type(number) is not int or not 0 <= number < len(tokens):
            raise damaged(
                file.path, f"its '{key}_token_id' is {number!r}, and it has {len(tokens):,} tokens", PUT_TOKENIZER
            )
        named[field] = tokens[number]
    return named
