"""The figures of a report that tables show: as columns read from a JSON column, or out of a report at hand."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement

from olivepress.database.tables import Json

# Sizes are read as floats: PostgreSQL's integer ends at 2 GiB, a float is exact up to 2^53.
FIGURES: dict[str, tuple[str, ...]] = {
    "source_size_bytes": ("source_size_bytes",),
    "size_bytes": ("size_bytes",),
    "peak_rss_bytes": ("peak_rss_bytes",),
    "tokens_per_s": ("tokens_per_s", "median"),
    "first_token_ms": ("first_token_ms", "median"),
    "prompts_total": ("prompts", "total"),
    "prompts_with_expectation": ("prompts", "with_expectation"),
    "prompts_passed": ("prompts", "passed"),
}
_WHOLE = frozenset(FIGURES) - {"tokens_per_s", "first_token_ms"}
_CERTIFICATE = ("certificate", "status")


def figures_of(report: Any, prefix: tuple[str, ...] = ()) -> list[ColumnElement[Any]]:
    """The figures that tables show, as labelled columns read from a JSON column that holds a report."""
    figures = [report[(*prefix, *path)].as_float().label(name) for name, path in FIGURES.items()]
    return [*figures, report[(*prefix, *_CERTIFICATE)].as_string().label("certificate")]


def figures_view(row: Any) -> Json:
    """The figures of a row that has the columns of `figures_of`: bytes, ms, tokens per second; None if not measured."""
    values = {name: getattr(row, name) for name in FIGURES}
    whole = {name: int(values[name]) for name in _WHOLE if values[name] is not None}
    return values | whole | {"certificate": row.certificate}


def figures_in(report: Mapping[str, Any]) -> Json:
    """The same figures, out of a report at hand."""
    return {name: _at(report, path) for name, path in FIGURES.items()} | {"certificate": _at(report, _CERTIFICATE)}


def _at(report: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = report
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
