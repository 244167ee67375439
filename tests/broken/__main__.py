"""Writes every broken checkpoint into a folder of its own, for a try by hand."""

import sys
from pathlib import Path

from tests.broken import TABLE, write
from tests.broken.sound import write_sound


def main(directory: Path) -> None:
    """Write `directory`/sound, and `directory`/broken-... for each of the table."""
    write_sound(directory / "sound")
    for number, name in enumerate(TABLE, 1):
        into = directory / f"{number:03d}-{name.replace(' ', '-')}"
        into.mkdir()
        print(write(name, directory / "sound", into))  # noqa: T201


main(Path(sys.argv[1]))
