"""Rules of the registry: what a model or an alias may be called, how people refer to a version, what speaks against
pointing an alias to one, and what is searched for. Pure.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from olivepress.errors import BadManifest
from olivepress.recipes.recipe import Recipe

LATEST = "latest"
MODEL_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?")
ALIAS_NAME = re.compile(r"[a-z](?:[a-z0-9._-]{0,62}[a-z0-9])?")
# Foundry Local makes directories of these names, also on Windows.
RESERVED_ON_WINDOWS = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{device}{number}" for device in ("com", "lpt") for number in range(1, 10)}
)


MOST_TEXT = 500


class VersionFlag(StrEnum):
    """Why no alias should point to a version, although it is published; `flag` and `unflag` move it."""

    RECERTIFICATION_FAILED = "recertification_failed"
    """Measured again, with another runtime, it failed."""
    UNVALIDATED = "unvalidated"
    """It was imported and never measured here."""
    FORCED = "forced"
    """It was published although gates failed."""
    DAMAGED = "damaged"
    """The store lost or damaged its content."""


class MoveCause(StrEnum):
    """Why an alias was moved."""

    PUBLISHED = "published"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    DELETED = "deleted"
    """Its version was deleted."""


class VerdictKind(StrEnum):
    """What the gates said of a version when it was published."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_MEASURED = "not_measured"


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


@dataclass(frozen=True)
class Order:
    """Who wants a change of the registry, why, and whether what speaks against it is overridden.

    Raises:
        BadManifest: it overrides and gives no reason, or a text is too long or has line breaks in it.
    """

    by: str
    reason: str | None = None
    is_forced: bool = False

    def __post_init__(self) -> None:
        for name, text in (("a reason", self.reason), ("a name", self.by)):
            if text is not None:
                check_text(text, name)
        if self.is_forced and not self.reason:
            raise BadManifest('what is forced needs a reason, which is kept; add --reason "..."')


def check_text(text: str, what: str) -> str:
    """A text that people leave in the registry, if it can be shown on one line.

    Raises:
        BadManifest: it is empty, too long, or has other characters than printable ones.
    """
    if not text.strip() or len(text) > MOST_TEXT or not text.isprintable():
        raise BadManifest(
            f"{what} is one line of 1 to {MOST_TEXT} printable characters; this one is not: {text[:40]!r}"
        )
    return text


@dataclass(frozen=True)
class Standing:
    """What is known against a version; `version` is how people write it."""

    version: str
    flags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    deprecated_reason: str | None = None
    successor: str | None = None

    def objections(self) -> list[str]:
        """Why no alias should point to it, each in a few words; empty if nothing is known against it."""
        found = [_flag_text(VersionFlag(name), flag["reason"]) for name, flag in sorted(self.flags.items())]
        if self.deprecated_reason is not None:
            use = f"; use {self.successor}" if self.successor else ""
            found.append(f"it is deprecated ({self.deprecated_reason}{use})")
        return found


def _flag_text(flag: VersionFlag, reason: str) -> str:
    said = {
        VersionFlag.RECERTIFICATION_FAILED: "it failed when it was certified again",
        VersionFlag.UNVALIDATED: "it was imported and never validated",
        VersionFlag.FORCED: "it was published by force",
        VersionFlag.DAMAGED: "its content in the store is damaged",
    }
    return f"{said[flag]} ({reason})"


def verdict_of(report: Mapping[str, Any]) -> VerdictKind:
    """What the gates of a report say; one without gates measured nothing."""
    if report.get("gates") is None:
        return VerdictKind.NOT_MEASURED
    is_failed = any(gate["verdict"] == "failed" for gate in report["gates"])
    return VerdictKind.FAILED if is_failed else VerdictKind.PASSED


@dataclass(frozen=True)
class PastMove:
    """A move of an alias, as `earlier_target` reads it: to the id of a version, or away (None)."""

    cause: MoveCause
    target: int | None


def earlier_target(moves: Sequence[PastMove], kept: Iterable[int]) -> int | None:
    """Where going back leads: the version that the alias pointed to before it was moved to where it is.

    Going back undoes a move; so going back twice leads two moves back, and not to and fro.

    Args:
        moves: all moves of the alias, oldest first.
        kept: ids of versions that are not deleted; others are passed over.
    """
    trail: list[int | None] = []
    for move in moves:
        if move.cause is MoveCause.ROLLED_BACK:
            while trail and trail[-1] != move.target:
                trail.pop()
        else:
            trail.append(move.target)
    can_be = set(kept)
    now = trail[-1] if trail else None
    return next((target for target in reversed(trail[:-1]) if target in can_be and target != now), None)


@dataclass(frozen=True)
class VersionSearch:
    """Which versions are looked for; None means any."""

    family: str | None = None
    precision: str | None = None
    verdict: VerdictKind | None = None
    largest_bytes: int | None = None
    text: str | None = None
    """In the model's or the checkpoint's name, in any case of letters."""
    is_deprecated: bool | None = None
    is_flagged: bool | None = None
    is_deleted: bool = False
    """Those that are deleted, instead of those that are not."""
