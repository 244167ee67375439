"""Tokenizers that are missing, damaged, or another model's."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.broken.breakage import Broken
from tests.broken.weights import LFS_POINTER
from tests.integration.ingest_cases import add_token, edit_json

OWN = "save the (?:one|tokenizer)"
# Text that matches takes longer with every letter.
EXPLODING = r"(a+)+$|(\w+\s?)+\1$"


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def break_it(directory: Path) -> None:
        path = directory / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        change(tokenizer)
        path.write_text(json.dumps(tokenizer))

    return break_it


def of_kind(kind: str, tokenizer_class: str = "PreTrainedTokenizerFast", **more: Any) -> Callable[[Path], None]:
    def break_it(directory: Path) -> None:
        words = {"type": kind, "vocab": {f"word{number}": number for number in range(512)}, "unk_token": "word0"}
        parts = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": words | more}
        nothing = dict.fromkeys(("normalizer", "post_processor", "decoder", "truncation", "padding"))
        (directory / "tokenizer.json").write_text(json.dumps(parts | nothing))
        edit_json(
            directory / "tokenizer_config.json", tokenizer_class=tokenizer_class, eos_token="word511", pad_token="word0"
        )

    return break_it


# transformers makes the family's own kind of it, which has none of the words.
WORDS = of_kind("WordLevel", "Qwen2Tokenizer")
PIECES = of_kind("WordPiece", continuing_subword_prefix="##", max_input_chars_per_word=100)
LIKELIHOODS = of_kind("Unigram", vocab=[[f"word{number}", -1.0] for number in range(512)], unk_id=0)


def enormous(directory: Path) -> None:
    with (directory / "tokenizer.json").open("wb") as file:
        file.truncate(2**32)


TABLE: Mapping[str, Broken] = {
    "no tokenizer": Broken(lambda d: (d / "tokenizer.json").unlink(), f"has no tokenizer .*; {OWN}"),
    "a pointer in the place of the tokenizer": Broken(
        lambda d: (d / "tokenizer.json").write_text(LFS_POINTER), "tokenizer.json is a Git LFS pointer, .*; run"
    ),
    "a tokenizer of four gigabytes": Broken(enormous, "is larger than any tokenizer.json should be .*; replace it"),
    "a larger model's tokenizer": Broken(
        edited(lambda t: t["model"].update(vocab={word: n + 5000 for word, n in t["model"]["vocab"].items()})),
        "has tokens that the model has no embedding for .*; call resize_token_embeddings",
    ),
    "a smaller model's tokenizer": Broken(
        edited(lambda t: t["model"].update(vocab=dict(list(t["model"]["vocab"].items())[:300]), merges=[])),
        f"config.json ends answers with token 511, which the tokenizer does not have; {OWN}",
    ),
    "a tokenizer of words": Broken(WORDS, f"the tokenizer in .* does not give text back: .*; {OWN}"),
    "a tokenizer of pieces": Broken(PIECES, "is of the kind WordPiece, .* chats with BPE only; train", source="llama"),
    "a tokenizer of likelihoods": Broken(
        LIKELIHOODS, "is of the kind Unigram, .* chats with BPE only; train", source="llama"
    ),
    "tokens of one number": Broken(
        edited(lambda t: t["model"]["vocab"].update(dict.fromkeys(list(t["model"]["vocab"])[:50], 0))),
        f"gives 49 of its tokens the number of another, .*; {OWN}",
    ),
    "merges of other words": Broken(
        edited(lambda t: t["model"].update(merges=[["zzz", "qqq"]])), f"cannot be loaded .*zzz.*; {OWN}"
    ),
    "a pattern that explodes": Broken(
        edited(
            lambda t: t.update(
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": EXPLODING},
                    "behavior": "Isolated",
                    "invert": False,
                }
            )
        ),
        rf"tokenizer.* (?:fails on ordinary text|cannot be used) \(.*; {OWN}",
    ),
    "an added token without an embedding": Broken(
        lambda d: add_token(d, "<|new|>", 512), "has no embedding for .*'<.new.>', number 512.*; call resize"
    ),
    "no end of a text": Broken(
        lambda d: (
            edit_json(d / "config.json", eos_token_id=None),
            edit_json(d / "generation_config.json", eos_token_id=None),
            edit_json(d / "tokenizer_config.json", eos_token=None),
        ),
        "so the model would never stop; set 'eos_token_id'",
    ),
    "a tokenizer_config that is a list": Broken(
        lambda d: (d / "tokenizer_config.json").write_text("[1]"), "holds no JSON object; save or copy it again"
    ),
}
