"""What a source checkpoint said, as an artifact: written once by the reference step, read by every validation.

Two files: reference.json (texts, answers, facts) and reference.npz (token ids, condensed distributions, the print of
the weights; arrays of numbers only, loaded with pickle off).
"""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from olivepress.errors import BadArtifact
from workers.measures.token_comparison import Distribution, condensed
from workers.measures.weight_print import WeightPrint, from_arrays, to_arrays

__all__ = ["Answer", "Reference", "Section", "Yardstick", "condensed", "read_reference", "write_reference"]

SCHEMA_VERSION = 2
JSON_FILE, ARRAYS_FILE = "reference.json", "reference.npz"
HELD_OUT, ANSWERS = "held_out", "answers"
WEIGHTS = "weights_"
WHAT_NOW = "validate again with --fresh, so that the source is run anew"


@dataclass(frozen=True)
class Section:
    """A stretch of tokens that both models read, and what the source gives to those from `start` on.

    `kind` is "held_out", a part of the common text, or "answers", a domain prompt with the source's own answer.
    """

    kind: str
    tokens: tuple[int, ...]
    start: int
    distribution: Distribution

    def positions(self) -> slice:
        """Where in the logits of these tokens the distributions stand."""
        return slice(self.start - 1, len(self.tokens) - 1)


@dataclass(frozen=True)
class Yardstick:
    """What rounding alone does to the source: mean KL divergence in nats and top-1 agreement over so many positions."""

    kl: float
    top1: float
    positions: int


@dataclass(frozen=True)
class Answer:
    """A conversation, how the source's own template and tokenizer frame it, and its greedy answer.

    `text` and `tokens` are None where the template refuses the conversation; `answer` is None where there was no time
    to ask, or no answer could be asked for.
    """

    messages: tuple[dict[str, str], ...]
    text: str | None
    tokens: tuple[int, ...] | None
    answer: str | None


@dataclass(frozen=True)
class Reference:
    """Everything that one checkpoint said."""

    facts: dict[str, Any]
    answers: tuple[Answer, ...]
    yardsticks: dict[str, Yardstick]
    sections: tuple[Section, ...]
    weights: WeightPrint
    notes: tuple[str, ...] = ()


def write_reference(reference: Reference, directory: Path) -> None:
    """Write it into an empty directory; the same content gives the same bytes."""
    weights, numbers = to_arrays(reference.weights)
    content = {
        "schema_version": SCHEMA_VERSION,
        "facts": reference.facts,
        "answers": [asdict(answer) for answer in reference.answers],
        "yardsticks": {name: asdict(yardstick) for name, yardstick in reference.yardsticks.items()},
        "sections": [
            {"kind": section.kind, "length": len(section.tokens), "start": section.start}
            for section in reference.sections
        ],
        "weights": weights,
        "notes": list(reference.notes),
    }
    (directory / JSON_FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    parts = [section.distribution for section in reference.sections]
    arrays = {
        "tokens": _joined([np.asarray(section.tokens, dtype=np.int32) for section in reference.sections], np.int32),
        "top_ids": _joined([part.top_ids for part in parts], np.int32),
        "top_logprobs": _joined([part.top_logprobs for part in parts], np.float32),
        "target_logprobs": _joined([part.target_logprobs for part in parts], np.float32),
        **{f"{WEIGHTS}{name}": array for name, array in numbers.items()},
    }
    with zipfile.ZipFile(directory / ARRAYS_FILE, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            # Not numpy's savez: it writes the time of day.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def read_reference(directory: Path) -> Reference:
    """As `write_reference` left it.

    Raises:
        BadArtifact: it is not whole, or of another release.
    """
    try:
        content = json.loads((directory / JSON_FILE).read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise BadArtifact(f"the source's reference is of schema {content['schema_version']}; {WHAT_NOW}")
        with (directory / ARRAYS_FILE).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            numbers = {name: arrays[name] for name in arrays.files}
        sections = _sections(content["sections"], numbers)
        of_weights = {name.removeprefix(WEIGHTS): array for name, array in numbers.items() if name.startswith(WEIGHTS)}
        return Reference(
            facts=content["facts"],
            answers=tuple(_answer(values) for values in content["answers"]),
            yardsticks={name: Yardstick(**values) for name, values in content["yardsticks"].items()},
            sections=sections,
            weights=from_arrays(content["weights"], of_weights),
            notes=tuple(content["notes"]),
        )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise BadArtifact(f"the source's reference cannot be read ({error}); {WHAT_NOW}") from error


def _sections(described: Sequence[dict[str, Any]], arrays: dict[str, Any]) -> tuple[Section, ...]:
    sections, token, row = [], 0, 0
    for values in described:
        tokens = arrays["tokens"][token : token + values["length"]]
        rows = slice(row, row + values["length"] - values["start"])
        distribution = Distribution(
            top_ids=arrays["top_ids"][rows],
            top_logprobs=arrays["top_logprobs"][rows],
            targets=tokens[values["start"] :],
            target_logprobs=arrays["target_logprobs"][rows],
        )
        if not len(distribution.top_ids) == len(distribution.targets) == len(distribution.target_logprobs):
            raise BadArtifact(f"the source's reference is not whole; {WHAT_NOW}")
        sections.append(Section(values["kind"], tuple(map(int, tokens)), values["start"], distribution))
        token, row = token + values["length"], rows.stop
    return tuple(sections)


def _answer(values: dict[str, Any]) -> Answer:
    tokens = values["tokens"]
    return Answer(
        tuple(values["messages"]), values["text"], None if tokens is None else tuple(tokens), values["answer"]
    )


def _joined(parts: Sequence[Any], dtype: Any) -> Any:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)
