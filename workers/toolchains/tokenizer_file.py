"""Opens a tokenizer.json with the library that wrote it: what training cut text with."""

import hashlib
import json
from pathlib import Path

from tokenizers import Tokenizer

from olivepress.errors import BadArtifact

TOKENIZER_FILE = "tokenizer.json"


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory.

    Raises:
        BadArtifact: there is none, or it is not one.
    """
    try:
        return Tokenizer.from_file(str(directory / TOKENIZER_FILE))
    except Exception as error:  # The library raises bare Exception, for a missing file too.
        raise BadArtifact(f"{TOKENIZER_FILE} cannot be opened: {error}; convert the checkpoint again") from error


def tokenizer_print(tokenizer: Tokenizer, text: str) -> dict[str, str]:
    """What tells a tokenizer from another: SHA-256 of its words with their numbers, of a text's tokens, and of those
    put together again; by what each of them is."""
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    parts = {
        "words or their numbers": sorted(tokenizer.get_vocab(with_added_tokens=True).items()),
        "cutting of a long text": tokens,
        "putting together of tokens": tokenizer.decode(tokens),
    }
    return {name: hashlib.sha256(json.dumps(part).encode()).hexdigest() for name, part in parts.items()}
