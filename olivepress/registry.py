"""Rules of registered names: what a model or an alias may be called, and how people refer to a version. Pure."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from olivepress.errors import BadManifest
from olivepress.recipes import Recipe

LATEST = "latest"
MODEL_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?")
ALIAS_NAME = re.compile(r"[a-z](?:[a-z0-9._-]{0,62}[a-z0-9])?")
# Foundry Local makes directories of these names, also on Windows.
RESERVED_ON_WINDOWS = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{device}{number}" for device in ("com", "lpt") for number in range(1, 10)}
)


@dataclass(frozen=True)
class VersionReference:
    """A model version as people write it: NAME, NAME:3 or NAME@production."""

    name: str
    number: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        if self.number is not None:
            return f"{self.name}:{self.number}"
        return f"{self.name}@{self.alias or LATEST}"


def check_model_name(name: str) -> str:
    """The name, if a model may have it.

    Raises:
        BadManifest: it is empty, too long, has other characters, or Windows keeps it for itself.
    """
    if not MODEL_NAME.fullmatch(name) or ".." in name:
        raise BadManifest(
            f"'{name}' cannot be a model name; use 1 to 100 lower-case letters, digits, '.', '_' or '-', "
            "starting and ending with a letter or digit"
        )
    if name.split(".")[0] in RESERVED_ON_WINDOWS:
        raise BadManifest(f"'{name}' cannot be a model name because Windows reserves it; choose another name")
    return name


def check_alias(alias: str) -> str:
    """The alias, if it may be one.

    Raises:
        BadManifest: it has characters that an alias may not have.
    """
    if not ALIAS_NAME.fullmatch(alias):
        raise BadManifest(
            f"'{alias}' cannot be an alias; use 1 to 64 lower-case letters, digits, '.', '_' or '-', starting with a "
            "letter, such as 'latest' or 'production'"
        )
    return alias


def model_name(checkpoint_name: str, suffix: str) -> str:
    """The registered name of a checkpoint's model: <name>-<precision>; `model_suffixes` says when it is longer.

    Raises:
        BadManifest: the result is no legal model name.
    """
    return check_model_name(f"{checkpoint_name}-{suffix}")


def model_suffixes(recipes: Iterable[Recipe]) -> dict[str, str]:
    """What a model's name ends with, by recipe: the precision.

    Where several recipes of a batch have one precision, the recipe's own name without its provider (cpu-int4-128 gives
    int4-128): else they would publish under one name, and `latest` would be whichever ended last.
    """
    chosen = list(recipes)
    counts = Counter(recipe.precision for recipe in chosen)
    return {
        recipe.name: recipe.precision.value
        if counts[recipe.precision] == 1
        else recipe.name.removeprefix(f"{recipe.execution_provider.value}-")
        for recipe in chosen
    }


def name_from_directory(directory_name: str) -> str:
    """A legal checkpoint name made from a folder's name: lower case, other characters become '-'."""
    name = re.sub(r"[^a-z0-9._]+", "-", directory_name.lower()).strip("-._")
    return re.sub(r"\.{2,}", ".", name) or "checkpoint"


def parse_reference(text: str) -> VersionReference:
    """NAME, NAME:NUMBER or NAME@ALIAS.

    Raises:
        BadManifest: the text is none of these.
    """
    if "@" in text:
        name, _, alias = text.partition("@")
        return VersionReference(check_model_name(name), alias=check_alias(alias))
    if ":" in text:
        name, _, number = text.partition(":")
        if not re.fullmatch(r"[1-9][0-9]{0,8}", number):
            raise BadManifest(f"'{text}' names no version; write NAME, NAME:3 or NAME@production")
        return VersionReference(check_model_name(name), number=int(number))
    return VersionReference(check_model_name(text), alias=LATEST)
