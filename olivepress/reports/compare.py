"""Several reports beside each other: figures, the best of each, and which are not beaten in everything. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from olivepress.reports import wording
from olivepress.reports.document import at

Json = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """A figure of a report: where it stands, how it is written, and which way is better."""

    key: str
    title: str
    path: tuple[str, ...]
    write: Callable[[float | None], str]
    is_more_better: bool
    is_timed: bool = False
    is_change: bool = False
    """Better the nearer it is to 0."""


def _milliseconds(value: float | None) -> str:
    return wording.NOTHING if value is None else f"{wording.digits(value)} ms"


MEASURES = (
    Measure("size_bytes", "size", ("size_bytes",), wording.size, False),
    Measure("size_ratio", "of the source's size", ("size_ratio",), wording.share, False),
    Measure("tokens_per_s", "tokens per second", ("tokens_per_s", "median"), wording.digits, True, True),
    Measure("first_token_ms", "first token", ("first_token_ms", "median"), _milliseconds, False, True),
    Measure("load_ms", "load", ("load_ms",), _milliseconds, False, True),
    Measure("peak_rss_bytes", "peak memory", ("peak_rss_bytes",), wording.size, False),
    Measure("kl_divergence", "KL from source", ("quality", "held_out", "kl_divergence"), wording.digits, False),
    Measure(
        "perplexity_increase",
        "perplexity change",
        ("quality", "held_out", "perplexity_increase"),
        wording.share,
        False,
        is_change=True,
    ),
    Measure("top1_agreement", "same next token", ("quality", "held_out", "top1_agreement"), wording.share, True),
    Measure("prompts_share", "prompts passed", ("prompts", "share"), wording.share, True),
)
SPREAD_OF = {
    "tokens_per_s": ("tokens_per_s", "spread"),
    "first_token_ms": ("first_token_ms", "spread"),
    "load_ms": ("load", "spread"),
    "peak_rss_bytes": ("rss_spread_bytes",),
}


@dataclass(frozen=True)
class Figure:
    """One figure of one version; `is_best` where no other is better by more than their spread."""

    value: float | None
    text: str
    is_best: bool


@dataclass(frozen=True)
class Row:
    """One measure over all versions, in their order."""

    measure: Measure
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Compared:
    """What was compared. `front` tells of each version whether none other is at least as good in size, speed, memory
    and quality and better in one."""

    versions: tuple[str, ...]
    verdicts: tuple[str, ...]
    rows: tuple[Row, ...]
    front: tuple[bool, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> Json:
        """As JSON values."""
        return {
            "versions": [
                {
                    "version": name,
                    "verdict": self.verdicts[place],
                    "is_on_front": self.front[place],
                    "figures": {row.measure.key: row.figures[place].value for row in self.rows},
                    "best": [row.measure.key for row in self.rows if row.figures[place].is_best],
                }
                for place, name in enumerate(self.versions)
            ],
            "notes": list(self.notes),
        }


def compare(documents: Sequence[Mapping[str, Any]]) -> Compared:
    """Compare versions by their report documents, at least one.

    Figures of time are compared only where all were measured on one hardware class; of figures that lie within each
    other's spread none is better.
    """
    reports = [_with_share(document["report"]) for document in documents]
    classes = {at(report, "hardware", "class") or at(report, "hardware", "cpu") for report in reports}
    notes = []
    if len(classes) > 1:
        listed = "; ".join(sorted(str(name) for name in classes))
        notes.append(f"measured on different hardware ({listed}), so figures of time are not compared")
    rows = [_row(measure, reports, is_compared=not (measure.is_timed and len(classes) > 1)) for measure in MEASURES]
    rows = [row for row in rows if any(figure.value is not None for figure in row.figures)]
    front = _front([row for row in rows if not (row.measure.is_timed and len(classes) > 1)], len(documents))
    unmeasured = [
        document["version"] for document in documents if at(document["report"], "quality", "held_out") is None
    ]
    if unmeasured:
        notes.append(f"quality against the source was not measured for {', '.join(unmeasured)}")
    return Compared(
        versions=tuple(str(document["version"]) for document in documents),
        verdicts=tuple(str(document["verdict"]) for document in documents),
        rows=tuple(rows),
        front=front,
        notes=tuple(notes),
    )


def _with_share(report: Mapping[str, Any]) -> Json:
    asked, passed = at(report, "prompts", "with_expectation"), at(report, "prompts", "passed")
    share = passed / asked if asked and passed is not None else None
    return {**report, "prompts": {**(report.get("prompts") or {}), "share": share}}


def _row(measure: Measure, reports: Sequence[Json], *, is_compared: bool) -> Row:
    values = [at(report, *measure.path) for report in reports]
    values = [value if isinstance(value, int | float) else None for value in values]
    spreads = [at(report, *SPREAD_OF[measure.key]) if measure.key in SPREAD_OF else 0.0 for report in reports]
    known = [(value, spread or 0.0) for value, spread in zip(values, spreads, strict=True) if value is not None]
    ranked = sorted(known, key=lambda pair: abs(pair[0]) if measure.is_change else pair[0])
    best = ranked[-1 if measure.is_more_better else 0] if is_compared and len(known) > 1 else None
    figures = []
    for value, spread in zip(values, spreads, strict=True):
        # Within the spread of both: half of each, as two halves make the whole that repeats may differ by.
        is_best = best is not None and value is not None and abs(value - best[0]) <= (best[1] + (spread or 0.0)) / 2
        figures.append(Figure(value, measure.write(value), is_best))
    if all(figure.is_best or figure.value is None for figure in figures):
        figures = [Figure(figure.value, figure.text, False) for figure in figures]
    return Row(measure, tuple(figures))


FRONT_KEYS = frozenset({"size_bytes", "tokens_per_s", "peak_rss_bytes", "kl_divergence", "prompts_share"})


def _front(rows: Sequence[Row], count: int) -> tuple[bool, ...]:
    """Who is not dominated (Pareto) in the measures that all have."""
    used = [
        row for row in rows if row.measure.key in FRONT_KEYS and all(figure.value is not None for figure in row.figures)
    ]
    return undominated([[_cost(row, place) for row in used] for place in range(count)])


def undominated(costs: Sequence[Sequence[float]]) -> tuple[bool, ...]:
    """Of each list of costs, whether no other is at most as high in all and lower in one (Pareto)."""
    return tuple(not any(_dominates(other, mine) for other in costs) for mine in costs)


def plane(compared: Compared, key: str) -> list[tuple[str, float, float, bool]] | None:
    """Versions by size and another measure, as (name, size, value, whether no other is better in both); None where
    not all versions have it, or all the same."""
    rows = {row.measure.key: row for row in compared.rows}
    if key not in rows or any(figure.value is None for figure in (*rows[key].figures, *rows["size_bytes"].figures)):
        return None
    if len({figure.value for figure in rows[key].figures}) < 2:
        return None
    places = range(len(compared.versions))
    front = undominated([[_cost(rows["size_bytes"], place), _cost(rows[key], place)] for place in places])
    return [
        (
            compared.versions[place],
            rows["size_bytes"].figures[place].value or 0.0,
            rows[key].figures[place].value or 0.0,
            front[place],
        )
        for place in places
    ]


def _cost(row: Row, place: int) -> float:
    value = row.figures[place].value or 0.0
    return -value if row.measure.is_more_better else value


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)
