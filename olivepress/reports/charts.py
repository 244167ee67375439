"""Small charts as SVG text: lines and points on two axes, in the colours of the page around them.

Colours are CSS variables of the page, so that one drawing is readable in light and dark. Everything that is written
into the drawing is escaped.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 16, 44
TICKS = 5
LABEL_CHARACTERS = 26
DECADES_FOR_LOG = 1.2
CHARACTER_PX = 6.2


@dataclass(frozen=True)
class Line:
    """A series: points in the order in which they are joined. `colour` is a CSS variable's name."""

    name: str
    points: tuple[tuple[float, float], ...]
    colour: str = "--series-1"
    is_dashed: bool = False
    has_dots: bool = True


@dataclass(frozen=True)
class Dot:
    """A point with its name; `is_best` ones are on the front."""

    name: str
    x: float
    y: float
    is_best: bool


@dataclass(frozen=True)
class Axis:
    """What an axis shows, and how its numbers are written."""

    title: str
    write: Callable[[float], str]
    from_zero: bool = False
    is_log: bool = False


class _Scale:
    """Values to pixels."""

    def __init__(self, values: Sequence[float], axis: Axis, start_px: float, end_px: float) -> None:
        low, high = min(values), max(values)
        self.is_log = axis.is_log and low > 0 and high / low >= 10**DECADES_FOR_LOG
        if self.is_log:
            self.low, self.high = math.log10(low), math.log10(high)
        else:
            self.low, self.high = (min(low, 0.0) if axis.from_zero else low), high
        if self.high - self.low < 1e-12 * max(1.0, abs(self.high)):
            room = abs(self.high) * 0.1 or 1.0
            self.low, self.high = self.low - room, self.high + room
        elif not self.is_log:
            room = 0.08 * (self.high - self.low)
            self.high += room
            self.low -= 0 if axis.from_zero else room
        else:
            room = max(0.1, 0.08 * (self.high - self.low))
            self.low, self.high = self.low - room, self.high + room
        self._start, self._end = start_px, end_px

    def px(self, value: float) -> float:
        """Where a value lies."""
        place = math.log10(value) if self.is_log else value
        return self._start + (place - self.low) / (self.high - self.low) * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Round values along the axis."""
        if self.is_log:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            steps = (1, 2, 5) if self.high - self.low < 3 else (1,)
            ticks = [step * 10.0**decade for decade in decades for step in steps]
            return [tick for tick in ticks if self.low <= math.log10(tick) <= self.high]
        step = _round_step((self.high - self.low) / TICKS)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step) + 1)]


def line_chart(title: str, x_axis: Axis, y_axis: Axis, lines: Sequence[Line]) -> str:
    """Lines over a common axis, with a legend where there are several."""
    points = [point for line in lines for point in line.points]
    x, y = _scales([px for px, _ in points], [py for _, py in points], x_axis, y_axis)
    body = _frame(x, y, x_axis, y_axis)
    for line in lines:
        places = [(x.px(px), y.px(py)) for px, py in line.points]
        path = " ".join(f"{'M' if number == 0 else 'L'}{px:.1f},{py:.1f}" for number, (px, py) in enumerate(places))
        dashes = ' stroke-dasharray="5 4"' if line.is_dashed else ""
        body.append(f'<path d="{path}" fill="none" stroke="var({line.colour})" stroke-width="2"{dashes}/>')
        if line.has_dots:
            for (px, py), (value_x, value_y) in zip(places, line.points, strict=True):
                tip = escape(f"{line.name}: {y_axis.write(value_y)} at {x_axis.write(value_x)}")
                body.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="var({line.colour})">')
                body.append(f"<title>{tip}</title></circle>")
    return _svg(title, body + (_legend(lines) if len(lines) > 1 else []))


def dot_chart(title: str, x_axis: Axis, y_axis: Axis, dots: Sequence[Dot], *, is_joined: bool = True) -> str:
    """Named points; those on the front are filled, and joined by a line unless told otherwise."""
    x, y = _scales([dot.x for dot in dots], [dot.y for dot in dots], x_axis, y_axis)
    body = _frame(x, y, x_axis, y_axis)
    front = sorted((dot for dot in dots if dot.is_best), key=lambda dot: (dot.x, dot.y))
    if is_joined and len(front) > 1:
        path = " ".join(f"{'L' if n else 'M'}{x.px(dot.x):.1f},{y.px(dot.y):.1f}" for n, dot in enumerate(front))
        body.append(
            f'<path d="{path}" fill="none" stroke="var(--series-1)" stroke-dasharray="5 4" stroke-width="1.5"/>'
        )
    taken: list[tuple[float, float, float]] = []
    for dot in sorted(dots, key=lambda dot: dot.y):
        px, py = x.px(dot.x), y.px(dot.y)
        fill = "var(--series-1)" if dot.is_best else "var(--page)"
        tip = escape(f"{dot.name}: {x_axis.write(dot.x)}, {y_axis.write(dot.y)}")
        body.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5" fill="{fill}" stroke="var(--series-1)" stroke-width="2">'
            f"<title>{tip}</title></circle>"
        )
        body.append(_dot_label(dot, px, py, taken))
    return _svg(title, body)


def _dot_label(dot: Dot, px: float, py: float, taken: list[tuple[float, float, float]]) -> str:
    """The name beside its point, moved down where another name is."""
    text = dot.name if len(dot.name) <= LABEL_CHARACTERS else dot.name[: LABEL_CHARACTERS - 1] + "…"
    is_left = px + 10 + len(text) * CHARACTER_PX > WIDTH - 4
    label_x, label_y = (px - 10 if is_left else px + 10), py + 4
    width = len(text) * CHARACTER_PX
    start = label_x - width if is_left else label_x
    while any(start < end and begin < start + width and abs(label_y - top) < 13 for begin, end, top in taken):
        label_y += 13
    taken.append((start, start + width, label_y))
    anchor = "end" if is_left else "start"
    return f'<text x="{label_x:.1f}" y="{label_y:.1f}" text-anchor="{anchor}" class="name">{escape(text)}</text>'


def _scales(xs: Sequence[float], ys: Sequence[float], x_axis: Axis, y_axis: Axis) -> tuple[_Scale, _Scale]:
    return _Scale(xs, x_axis, LEFT, WIDTH - RIGHT), _Scale(ys, y_axis, HEIGHT - BOTTOM, TOP)


def _frame(x: _Scale, y: _Scale, x_axis: Axis, y_axis: Axis) -> list[str]:
    body = []
    for tick in y.ticks():
        py = y.px(tick)
        body.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}" class="grid"/>')
        body.append(f'<text x="{LEFT - 8}" y="{py + 4:.1f}" text-anchor="end">{escape(y_axis.write(tick))}</text>')
    for tick in x.ticks():
        px = x.px(tick)
        body.append(
            f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}" class="axis"/>'
        )
        body.append(
            f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{escape(x_axis.write(tick))}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    body.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}" class="axis"/>')
    body.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle" class="title">{escape(x_axis.title)}</text>')
    body.append(f'<text x="{LEFT}" y="{TOP - 4}" class="title">{escape(y_axis.title)}</text>')
    return body


def _legend(lines: Sequence[Line]) -> list[str]:
    body: list[str] = []
    px: float = WIDTH - RIGHT
    for line in reversed(lines):
        px -= len(line.name) * CHARACTER_PX + 42
        dashes = ' stroke-dasharray="5 4"' if line.is_dashed else ""
        body.append(
            f'<line x1="{px:.0f}" x2="{px + 18:.0f}" y1="{TOP - 8}" y2="{TOP - 8}" stroke="var({line.colour})" '
            f'stroke-width="3"{dashes}/>'
        )
        body.append(f'<text x="{px + 23:.0f}" y="{TOP - 4}">{escape(line.name)}</text>')
    return body


def _svg(title: str, body: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 -6 {WIDTH} {HEIGHT + 6}" role="img" aria-label="{escape(title)}" class="chart">'
        + "".join(body)
        + "</svg>"
    )


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10 … above a step."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
