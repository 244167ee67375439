"""A lineage as a drawing: one self-contained SVG, readable in light and dark. Pure.

Steps stand in the middle, one below the other; what people gave is on the left, what steps made on the right. What
steps use has a line of its own beside them, from which branches lead to them, so that lines never cross a box.
Everything that is written into the drawing is escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from olivepress.lineage import short
from olivepress.reports.wording import NOTHING, digits, size

Json = Mapping[str, Any]
WIDTH = 960
LEFT_X, LEFT_W = 16, 232
STEP_X, STEP_W = 330, 290
RIGHT_X, RIGHT_W = 702, 242
TOP, GAP = 20, 18
STEP_H, THING_H, THING_GAP = 66, 46, 8
LANE, LANE_GAP = 14, 12
CORNER = 6
CHARACTER_PX = 6.9
PERSON_KINDS = frozenset({"checkpoint", "model", "base", "prompts", "calibration", "recipe"})
COLOURS = 4
STYLE = """
.lineage { --l-page: #ffffff; --l-card: #f6f7f3; --l-ink: #1d2419; --l-soft: #5c6655; --l-line: #c3c9ba;
  --l-good: #1f7a34; --l-bad: #b3261e; --l-warn: #8a5a00;
  --l-0: #4a7a1e; --l-1: #b0631c; --l-2: #2f6c9e; --l-3: #8b4a9e; }
@media (prefers-color-scheme: dark) { .lineage {
  --l-page: #14170f; --l-card: #1d2217; --l-ink: #e8ecdf; --l-soft: #a3ad96; --l-line: #47503c;
  --l-good: #79cf85; --l-bad: #ff8d84; --l-warn: #e5b566;
  --l-0: #a3cf6b; --l-1: #eba968; --l-2: #7db8e8; --l-3: #d09be0; } }
.lineage text { font: 12px system-ui, sans-serif; fill: var(--l-soft); }
.lineage text.name { font-weight: 600; font-size: 13px; fill: var(--l-ink); }
.lineage text.good { fill: var(--l-good); } .lineage text.bad { fill: var(--l-bad); }
.lineage text.warn { fill: var(--l-warn); }
.lineage .page { fill: var(--l-page); } .lineage .box { fill: var(--l-card); stroke: var(--l-line); }
.lineage .made { fill: var(--l-page); stroke: var(--l-line); }
.lineage .strong { stroke: var(--l-0); stroke-width: 2; }
.lineage path { fill: none; stroke-width: 1.5; }
"""


@dataclass(frozen=True)
class _Box:
    """A box with lines of text: (text, class)."""

    x: float
    y: float
    width: float
    height: float
    lines: tuple[tuple[str, str], ...]
    style: str = "box"
    tip: str = ""

    @property
    def middle(self) -> float:
        """Of its height."""
        return self.y + self.height / 2


@dataclass
class _Plan:
    """Where everything stands."""

    steps: list[_Box] = field(default_factory=list)
    things: dict[str, _Box] = field(default_factory=dict)
    version: _Box | None = None
    aliases: list[_Box] = field(default_factory=list)
    height: float = 0.0


def drawing(lineage: Json) -> str:
    """The SVG of a lineage (see olivepress.lineage)."""
    plan = _planned(lineage)
    body = [
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{plan.height:.0f}"/>',
        _arrow_heads(),
    ]
    body += _lines(lineage, plan)
    boxes = [*plan.steps, *plan.things.values(), *([plan.version] if plan.version else []), *plan.aliases]
    body += [_drawn(box) for box in boxes]
    title = escape(f"Lineage of {lineage['version']['version']}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {plan.height:.0f}" class="lineage" role="img" '
        f'aria-label="{title}"><title>{title}</title>{"".join(body)}</svg>\n'
    )


def _planned(lineage: Json) -> _Plan:
    plan = _Plan()
    things = {thing["id"]: thing for thing in lineage["things"]}
    unplaced = [key for key, thing in things.items() if thing["kind"] in PERSON_KINDS]
    y: float = TOP
    for step in lineage["steps"]:
        given = [key for key in unplaced if key in step["used"]]
        unplaced = [key for key in unplaced if key not in given]
        y = _place_row(plan, y, [things[key] for key in given], step, [things[key] for key in step["made"]])
    # What no step is known to have used: of a version that was not made here, all of it.
    for key in unplaced:
        plan.things[key] = _thing_box(things[key], LEFT_X, y, LEFT_W)
        y += THING_H + THING_GAP
    if not lineage["steps"]:
        y = TOP
    y = _place_version(plan, lineage["version"], y)
    bottoms = [box.y + box.height for box in (*plan.steps, *plan.things.values(), *plan.aliases)]
    plan.height = max([y, *bottoms]) + TOP
    return plan


def _place_row(plan: _Plan, y: float, given: Sequence[Json], step: Json, made: Sequence[Json]) -> float:
    """Place a step, on its left what it was the first to use, on its right what it made; where the next row begins."""
    height = max(STEP_H, _stack_height(len(given)), _stack_height(len(made)))
    box = _step_box(step, y + (height - STEP_H) / 2)
    plan.steps.append(box)
    for x, width, things in ((LEFT_X, LEFT_W, given), (RIGHT_X, RIGHT_W, made)):
        top = y + (height - _stack_height(len(things))) / 2
        for place, thing in enumerate(things):
            plan.things[thing["id"]] = _thing_box(thing, x, top + place * (THING_H + THING_GAP), width)
    return y + height + GAP


def _place_version(plan: _Plan, version: Json, y: float) -> float:
    aliases = version["aliases"] or []
    height = max(STEP_H + 16, _stack_height(len(aliases)))
    known = [*(("flagged: " + name.replace("_", " ")) for name in version["flags"])]
    known += ["deprecated"] * (version["deprecated"] is not None) + ["deleted"] * (version["deleted"] is not None)
    lines = [(version["version"], "name"), (f"{version['recipe']} · {size(version['size_bytes'])}", "")]
    lines.append((", ".join(known), "warn") if known else _verdict(version["verdict"]))
    top = y + 6 + (height - STEP_H) / 2
    plan.version = _Box(STEP_X, top, STEP_W, STEP_H, tuple(lines), "box strong", version["artifact_digest"])
    top = y + 6 + (height - _stack_height(len(aliases))) / 2
    for place, alias in enumerate(aliases):
        box_y = top + place * (THING_H + THING_GAP)
        plan.aliases.append(_Box(RIGHT_X, box_y, RIGHT_W, THING_H, ((f"@{alias}", "name"), ("alias", "")), "made"))
    return y + height + 6


def _stack_height(count: int) -> float:
    return count * THING_H + max(0, count - 1) * THING_GAP


def _step_box(step: Json, y: float) -> _Box:
    seconds = step["seconds"]
    took = f"{digits(seconds)} s" if seconds is not None else NOTHING
    if step["is_reused"]:
        by = f"reused from job {step['reused_job']}" if step["reused_job"] else "reused from another team's job"
    else:
        by = str(step["host"] or step["worker_id"] or NOTHING)
    tries = len(step["attempts"])
    ran = f"{took} · {by}" + (f" · {tries} attempts" if tries > 1 else "")
    key = f"key {short(step['key'])}" if step["key"] else "no key: unique to its job"
    toolchain = ", ".join(f"{name} {number}" for name, number in step["toolchain"].items())
    tip = "\n".join(filter(None, [f"key {step['key']}" if step["key"] else "", toolchain]))
    return _Box(STEP_X, y, STEP_W, STEP_H, ((step["kind"], "name"), (ran, ""), (key, "")), tip=tip)


def _thing_box(thing: Json, x: float, y: float, width: float) -> _Box:
    name = thing["name"] if thing["kind"] in ("artifact", "report", "prompts", "calibration") else ""
    first = name or f"{thing['kind']} {thing['name']}".replace("base base", "base")
    second = " · ".join(filter(None, [short(thing["digest"]) if thing["digest"] else "", thing["detail"]]))
    tone = _verdict(thing["detail"])[1] if thing["kind"] == "report" else ""
    style = "box" if thing["kind"] in PERSON_KINDS else "made"
    return _Box(x, y, width, THING_H, ((first, "name"), (second, tone)), style, thing["digest"] or "")


def _verdict(verdict: str | None) -> tuple[str, str]:
    return str(verdict or "").replace("_", " "), {"passed": "good", "failed": "bad"}.get(verdict or "", "warn")


def _lines(lineage: Json, plan: _Plan) -> list[str]:
    """Straight arrows from steps to what they made, then a lane for each thing that is used."""
    found = []
    for step, box in zip(lineage["steps"], plan.steps, strict=True):
        for key in step["made"]:
            if (made := plan.things.get(key)) is not None and made.x == RIGHT_X:
                points = [(STEP_X + STEP_W, box.middle), (RIGHT_X - 22, box.middle), (RIGHT_X - 22, made.middle)]
                found.append(_path([*points, (RIGHT_X, made.middle)], "line"))
    for x, lane_x, direction, lanes in (
        (LEFT_X, STEP_X - LANE, -1, 5),
        (RIGHT_X, STEP_X + STEP_W + LANE, 1, 3),
    ):
        users = _users(lineage, plan, x)
        for place, (key, boxes) in enumerate(users):
            lane = lane_x + direction * (place % lanes) * LANE_GAP
            ends = [_entry(box, [one for one, used_by in users if box in used_by].index(key), x) for box in boxes]
            found += _lane(plan.things[key], ends, lane, place)
    if plan.version is not None:
        if plan.steps:
            middle = STEP_X + STEP_W / 2
            last = plan.steps[-1]
            found.append(_path([(middle, last.y + last.height), (middle, plan.version.y)], "line"))
        for box in plan.aliases:
            start = (STEP_X + STEP_W, plan.version.middle)
            points = [start, (RIGHT_X - 22, start[1]), (RIGHT_X - 22, box.middle), (RIGHT_X, box.middle)]
            found.append(_path(points, "line"))
    return found


def _users(lineage: Json, plan: _Plan, x: float) -> list[tuple[str, list[_Box]]]:
    """Things of one side with the steps that use them, in the order in which they stand."""
    found: dict[str, list[_Box]] = {}
    for step, box in zip(lineage["steps"], plan.steps, strict=True):
        for key in step["used"]:
            if key in plan.things and plan.things[key].x == x:
                found.setdefault(key, []).append(box)
    return sorted(found.items(), key=lambda item: plan.things[item[0]].y)


def _entry(box: _Box, place: int, from_x: float) -> tuple[float, float]:
    """Where the line of a step's first, second, … thing of one side ends; on the right its own arrow has the middle."""
    if from_x == LEFT_X:
        return STEP_X, box.y + 12 + (place % 5) * 11
    return STEP_X + STEP_W, box.y + (14, 24, 48, 58)[place % 4]


def _lane(thing: _Box, ends: Sequence[tuple[float, float]], lane_x: float, place: int) -> list[str]:
    """A line of its own from a thing, with a branch to each step that uses it."""
    is_right = thing.x == RIGHT_X
    # Below the arrow by which the thing was made.
    start = (RIGHT_X, thing.middle + 10) if is_right else (LEFT_X + LEFT_W, thing.middle)
    colour = str(place % COLOURS)
    return [_path([start, (lane_x, start[1]), (lane_x, end[1]), end], colour) for end in ends]


def _path(points: Sequence[tuple[float, float]], colour: str) -> str:
    """A line through these points with round corners and a head at its end."""
    kept = [point for place, point in enumerate(points) if place == 0 or point != points[place - 1]]
    parts = [f"M{kept[0][0]:.1f},{kept[0][1]:.1f}"]
    for before, corner, after in zip(kept, kept[1:], kept[2:], strict=False):
        parts.append(f"L{_towards(corner, before)}Q{corner[0]:.1f},{corner[1]:.1f} {_towards(corner, after)}")
    parts.append(f"L{kept[-1][0]:.1f},{kept[-1][1]:.1f}")
    return f'<path d="{"".join(parts)}" stroke="var(--l-{colour})" marker-end="url(#l-head-{colour})"/>'


def _towards(corner: tuple[float, float], other: tuple[float, float]) -> str:
    """The point a corner's radius before it, or halfway where it is nearer."""
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = max(abs(dx) + abs(dy), 1e-9)
    share = min(CORNER, length / 2) / length
    return f"{corner[0] + dx * share:.1f},{corner[1] + dy * share:.1f}"


def _arrow_heads() -> str:
    heads = [
        f'<marker id="l-head-{colour}" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0,0L8,4L0,8z" style="fill:var(--l-{colour});stroke:none"/></marker>'
        for colour in ("line", *map(str, range(COLOURS)))
    ]
    return f"<defs>{''.join(heads)}</defs>"


def _drawn(box: _Box) -> str:
    most = int((box.width - 24) / CHARACTER_PX)
    found = [
        f'<g><rect class="{box.style}" x="{box.x}" y="{box.y:.1f}" width="{box.width}" height="{box.height}" rx="8"/>'
    ]
    lines = [line for line in box.lines if line[0]]
    top = box.y + (box.height - 17 * len(lines)) / 2 + 13
    for row, (text, style) in enumerate(lines):
        shown = text if len(text) <= most else text[: most - 1] + "…"
        found.append(f'<text x="{box.x + 12}" y="{top + 17 * row:.1f}" class="{style}">{escape(shown)}</text>')
    tip = "\n".join(filter(None, [*(text for text, _ in lines if len(text) > most), box.tip]))
    found.append(f"<title>{escape(tip)}</title></g>" if tip else "</g>")
    return "".join(found)
