"""How an Olive workflow file is read: what of it became a recipe's key, what was noted, what cannot be taken. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from olivepress.recipes.files import Mistake


@dataclass
class Reading:
    """What was understood so far: the recipe's keys, where each came from, notes, and what must be refused."""

    keys: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)

    def take(self, key: str, value: Any, place: str) -> None:
        """Set a recipe's key (with a dot: one of a part), unless the file says two things of it."""
        part, _, inner = key.rpartition(".")
        target = self.keys.setdefault(part, {}) if part else self.keys
        if inner in target and target[inner] != value:
            self.refuse(place, f"is {value!r}, and {self.places[key]} says {target[inner]!r}; leave one of them out")
        target[inner] = value
        self.places.setdefault(key, place)

    def refuse(self, place: str, text: str) -> None:
        """Note a key that cannot be taken: its path, and what is wrong and what to do."""
        self.mistakes.append(Mistake(place, text))

    def note(self, text: str) -> None:
        """Note a translation, once."""
        if text not in self.notes:
            self.notes.append(text)

    def in_their_words(self, mistake: Mistake) -> Mistake:
        """A mistake in the recipe's keys, at the place in the file that gave the key."""
        return Mistake(self.places.get(mistake.place, mistake.place), mistake.text)


@dataclass(frozen=True)
class Options:
    """Options of a model, a system or a pass, which Olive takes flat and nested in `config`, each with its path."""

    values: dict[str, Any]
    places: dict[str, str]

    def __iter__(self) -> Iterator[tuple[str, Any, str]]:
        return ((key, value, self.places[key]) for key, value in self.values.items())

    def pop(self, key: str) -> Any:
        """Take an option out; None where there is none."""
        return self.values.pop(key, None)


def options_of(read: Reading, place: str, value: Any, beside: tuple[str, ...]) -> Options | None:
    """The options of one part of the file; None, and a refusal, where it has another form.

    Args:
        beside: keys that belong beside `config`, never in it.
    """
    if not isinstance(value, Mapping):
        read.refuse(place, "is no mapping; write its type and its options")
        return None
    inner = value.get("config") or {}
    if not isinstance(inner, Mapping):
        read.refuse(f"{place}.config", "is no mapping of options; leave it out")
        return None
    outer = {key: item for key, item in value.items() if key != "config"}
    for key in inner:
        if key in beside or (key in outer and outer[key] != inner[key]):
            read.refuse(f"{place}.config.{key}", "belongs, or also stands, beside config; write it there only")
    places = {key: f"{place}.{key}" for key in outer} | {key: f"{place}.config.{key}" for key in inner}
    return Options({**outer, **inner}, places)
