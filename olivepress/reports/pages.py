"""Self-contained HTML pages of reports and comparisons: no script, no network, readable in light and dark."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from olivepress.reports import charts, wording
from olivepress.reports.charts import Axis, Dot, Line
from olivepress.reports.compare import Compared, compare, plane
from olivepress.reports.document import at

Json = dict[str, Any]
TEMPLATES = "templates"
MEBIBYTE = 2**20
LEAST_KL = 1e-7
"""Drawn no lower: what is below is arithmetic, and would take all the room."""


def report_page(document: Mapping[str, Any]) -> str:
    """The page of one report document (see olivepress.reports.document)."""
    report = document["report"]
    pictures = {
        "latency": _latency(report),
        "speed": _speed(report),
        "memory": _memory(report),
        "rungs": _rungs(document.get("rungs") or []),
    }
    return page("report.html.j2", document=document, report=report, charts=pictures)


def compare_page(documents: Sequence[Mapping[str, Any]]) -> str:
    """The page that compares report documents."""
    compared = compare(documents)
    pictures = [picture for y in ("kl_divergence", "prompts_share", "tokens_per_s") if (picture := _front(compared, y))]
    return page("compare.html.j2", documents=documents, compared=compared, charts=pictures)


def page(template: str, **values: Any) -> str:
    """A page made from a template of this room."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("olivepress.reports", TEMPLATES),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": lambda value: wording.size(value or None),
        "digits": lambda value: wording.digits(_known(value)),
        "share": lambda value: wording.share(_known(value)),
        "day": lambda value: wording.day(_known(value)),
        "figure": _figure,
    }
    environment.globals |= {"marked": wording.marked, "nothing": wording.NOTHING}
    return environment.get_template(template).render(**values)


def _known(value: Any) -> Any:
    return value if isinstance(value, int | float) else None


def _figure(value: Any, unit: str = "") -> str:
    """A gate's limit or figure: bytes and shares as such, yes and no in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return wording.NOTHING
    if unit == "bytes":
        return wording.size(value)
    return wording.share(value) if unit == "share" else f"{wording.digits(value)} {unit}".strip()


def _milliseconds(value: float) -> str:
    return f"{wording.digits(value)} ms"


def _tokens(value: float) -> str:
    return f"{value:.0f}"


def _measured(report: Mapping[str, Any], key: str) -> list[tuple[float, Mapping[str, float]]]:
    entries = [entry for entry in report.get("latency") or [] if entry.get(key)]
    return [(float(entry["prompt_tokens"]), entry[key]) for entry in entries]


def _latency(report: Mapping[str, Any]) -> Markup | None:
    points = _measured(report, "first_token_ms")
    if len(points) < 2:
        return None
    median = Line("median", tuple((tokens, figure["median"]) for tokens, figure in points))
    p95 = Line("p95", tuple((tokens, figure["p95"]) for tokens, figure in points), "--series-2", is_dashed=True)
    x = Axis("tokens of the prompt", _tokens, is_log=True)
    y = Axis("time to the first token", _milliseconds, from_zero=True, is_log=True)
    return Markup(charts.line_chart("Time to the first token by length of the prompt", x, y, [median, p95]))


def _speed(report: Mapping[str, Any]) -> Markup | None:
    points = _measured(report, "tokens_per_s")
    if len(points) < 2:
        return None
    median = Line("median", tuple((tokens, figure["median"]) for tokens, figure in points))
    p95 = Line("p95", tuple((tokens, figure["p95"]) for tokens, figure in points), "--series-2", is_dashed=True)
    x = Axis("tokens of the prompt", _tokens, is_log=True)
    y = Axis("tokens per second", wording.digits, from_zero=True)
    return Markup(charts.line_chart("Tokens per second by length of the prompt", x, y, [median, p95]))


def _memory(report: Mapping[str, Any]) -> Markup | None:
    series = at(report, "soak", "rss_bytes") or []
    if len(series) < 2:
        return None
    every = at(report, "soak", "every") or 1
    points = tuple((float(place * every + 1), rss / MEBIBYTE) for place, rss in enumerate(series))
    x = Axis("session", _tokens)
    y = Axis("memory after each session", lambda value: f"{value:.1f} MiB")
    lines = [Line("memory", points, has_dots=len(points) <= 60)]
    return Markup(charts.line_chart("Memory over the sessions of the soak", x, y, lines))


def _rungs(rungs: Sequence[Mapping[str, Any]]) -> Markup | None:
    known = [rung for rung in rungs if rung.get("size_bytes") and rung.get("kl_divergence") is not None]
    if len(known) < 2:
        return None
    dots = [
        Dot(
            str(rung["recipe"]),
            float(rung["size_bytes"]),
            max(float(rung["kl_divergence"]), LEAST_KL),
            rung["verdict"] == "passed",
        )
        for rung in known
    ]
    y = Axis("KL divergence from the source", wording.digits, is_log=True)
    title = "Size and quality of the rungs; those that passed are filled"
    return Markup(charts.dot_chart(title, Axis("size", wording.size), y, dots, is_joined=False))


def _front(compared: Compared, key: str) -> Markup | None:
    """Size against another measure, where all versions have it."""
    points = plane(compared, key)
    if points is None:
        return None
    least = LEAST_KL if key == "kl_divergence" else 0.0
    dots = [Dot(name, size, max(value, least), is_best) for name, size, value, is_best in points]
    (measure,) = (row.measure for row in compared.rows if row.measure.key == key)
    y = Axis(measure.title, measure.write, is_log=key == "kl_divergence", from_zero=key == "tokens_per_s")
    return Markup(charts.dot_chart(f"Size against {measure.title}", Axis("size", wording.size), y, dots))
