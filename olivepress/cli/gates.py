"""Limits as people give them to a command: `--gates FILE`, or `--gates NAME=VALUE`, as often as they like."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from olivepress.errors import BadRecipe
from olivepress.gates import TIMED, parse_limits
from olivepress.recipes.files import read_mapping

Gates = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE|FILE",
        help="Limits instead of the recipe's, such as max_rss_slope=1000; repeat for several.",
    ),
]


def read_gates(given: list[str] | None) -> dict[str, Any]:
    """The limits of all options together; of two for one gate the later counts.

    Raises:
        BadRecipe: a file holds none, or a gate cannot be.
    """
    found: dict[str, Any] = {}
    for text in given or []:
        name, is_pair, value = text.partition("=")
        # A path may hold a "=", a gate's name is a word.
        if is_pair and name.isidentifier():
            found[name] = _value(text, value)
        else:
            values = read_mapping(Path(text), "limits (write NAME=VALUE, or a file of them)")
            # The file may be a recipe's.
            inner = values.get("gates", values)
            found |= inner if isinstance(inner, dict) else values
    # The hardware that a limit of time is for may be the recipe's; the stack knows that.
    is_whole = "timing_hardware" in found
    parse_limits({name: value for name, value in found.items() if is_whole or name not in TIMED}, "--gates")
    return found


def _value(text: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise BadRecipe(f"--gates {text}: '{value}' is no number, no text, and neither true nor false") from None
