"""Opens a tokenizer.json with the library that wrote it: what training cut text with."""

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
