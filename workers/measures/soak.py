"""Whether memory leaks: RSS over many sessions, its robust slope, and a verdict.

Unit: bytes per session. Method: one session after the other opens, reads a prompt, writes NEW_TOKENS tokens and closes;
RSS is taken after each close. The first sessions fill the allocator's pools and are left out. The slope is Theil and
Sen's (workers.measures.spread), which some jumps of an allocator do not bend. A leak is suspected where even the low
end of its 95 % interval is above LEAK_BYTES: a session that kept a token's cache would lose at least that.
"""

import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workers.measures.memory import rss_bytes
from workers.measures.spread import theil_sen
from workers.toolchains.genai import GenaiModel

SESSIONS = 30
BUDGET_S = 3.0
FEWEST_SESSIONS = 8
WARM_UP_SHARE = 0.25
NEW_TOKENS = 8
PROMPT_TOKENS = 64
LEAK_BYTES = 4096
POINTS_AT_MOST = 400
S_PER_MINUTE = 60.0


def soak(
    model: GenaiModel,
    text: Sequence[int],
    wanted: Mapping[str, float] | None,
    report_progress: Callable[[float], None],
) -> dict[str, Any]:
    """Repeat sessions and look at the memory between them.

    Args:
        wanted: {"sessions": n} or {"minutes": m}; None: SESSIONS, or as many as BUDGET_S allow.

    Returns:
        {"sessions", "seconds", "rss_bytes": [after each session, thinned], "rss_slope_bytes", "rss_slope_interval":
        [low, high], "verdict": "no_leak" | "leak_suspected" | "too_short"}
    """
    sessions = int((wanted or {}).get("sessions", SESSIONS if not wanted else 10**9))
    budget_s = (wanted or {}).get("minutes", 0) * S_PER_MINUTE or (BUDGET_S if not wanted else 10**9)
    prompt = list(text[: min(PROMPT_TOKENS, model.context_length // 2)])
    started = time.perf_counter()
    # Not a list: its numbers would grow the memory that is looked at.
    series = array("q")
    while len(series) < sessions and (not series or time.perf_counter() - started < budget_s):
        elapsed_s = time.perf_counter() - started
        report_progress(min(1.0, max(len(series) / sessions, elapsed_s / budget_s)))
        model.generate(prompt, NEW_TOKENS, min_new_tokens=NEW_TOKENS)
        series.append(rss_bytes())
    found = _thinned(series) | {"sessions": len(series), "seconds": round(time.perf_counter() - started, 2)}
    return found | judge_series(series)


def judge_series(series: Sequence[int]) -> dict[str, Any]:
    """The slope of a series of RSS, one entry a session, and the verdict."""
    settled = series[int(len(series) * WARM_UP_SHARE) :]
    if len(settled) < FEWEST_SESSIONS:
        return {"rss_slope_bytes": None, "rss_slope_interval": None, "verdict": "too_short"}
    step = max(1, len(settled) // POINTS_AT_MOST)
    places = range(0, len(settled), step)
    slope = theil_sen([settled[place] for place in places], [float(place) for place in places])
    return {
        "rss_slope_bytes": round(slope["slope"], 1),
        "rss_slope_interval": [round(slope["low"], 1), round(slope["high"], 1)],
        "verdict": "leak_suspected" if slope["low"] > LEAK_BYTES else "no_leak",
    }


def _thinned(series: Sequence[int]) -> dict[str, Any]:
    step = max(1, -(-len(series) // POINTS_AT_MOST))
    return {"rss_bytes": list(series[::step]), "every": step}
