"""How long validate soaks a model, as people write it: `2m`, `90s`, `1h`, or a number of sessions. Pure."""

import re

from olivepress.errors import BadManifest

MINUTES_OF = {"s": 1 / 60, "m": 1.0, "h": 60.0}
MINUTES_AT_MOST = 24 * 60
# Fewer settle nothing: the first quarter is warm-up, and a slope needs some points (workers.measures.soak).
FEWEST_SESSIONS, SESSIONS_AT_MOST = 11, 1_000_000
EXAMPLES = "write a time such as 2m, 90s or 1h, or a number of sessions such as 50"


def parse_soak(text: str | None) -> dict[str, float] | None:
    """What the validate step's spec has as `soak`: {"minutes": m} or {"sessions": n}; None for the short default.

    Raises:
        BadManifest: it is neither a time nor a number of sessions, or beyond the bounds.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*([smh]?)", text.strip(), flags=re.ASCII)
    if found is None:
        raise BadManifest(f"soak '{text}' is no time and no number of sessions; {EXAMPLES}")
    number, unit = float(found[1]), found[2]
    if unit:
        minutes = number * MINUTES_OF[unit]
        if not 0 < minutes <= MINUTES_AT_MOST:
            raise BadManifest(f"soak '{text}' must be more than nothing and at most {MINUTES_AT_MOST // 60} h")
        return {"minutes": round(minutes, 6)}
    if number != int(number) or not FEWEST_SESSIONS <= number <= SESSIONS_AT_MOST:
        raise BadManifest(
            f"soak '{text}' is a number of sessions and must be whole, from {FEWEST_SESSIONS} to {SESSIONS_AT_MOST:,}; "
            "for a time add s, m or h"
        )
    return {"sessions": int(number)}
