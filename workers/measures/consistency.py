"""Whether a model behaves alike over lengths of prompts: it answers at each, and its cost does not jump.

Unit of `largest_jump`: times. Method: reading n tokens compares each with those before it, so a token's cost grows at
most as fast as the prompt. From each measured length to the next, the growth of the time a token takes (to the first
token, divided by the prompt's tokens; and for each token after it) is divided by the growth of the length; the largest
of these is the jump: at or below 1 it is explained by the length. Short prompts, where the engine's fixed costs
dominate, start from SHORTEST tokens.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

SHORTEST = 128
FEWEST_LENGTHS = 2


def judge_lengths(entries: Sequence[dict[str, Any]], limit_note: str | None) -> dict[str, Any]:
    """What the lengths (as `latency.measure_lengths` gives them) say together.

    Returns:
        {"status": "passed", "failed" or "not_measured", "lengths_answered": [tokens], "largest_jump": times or None,
        "untried": lengths that there was no time or room for, and why, "problem": str | None, "notes": [str]}
    """
    answered = [entry for entry in entries if entry["runs"]]
    failures = [entry for entry in entries if entry["is_failure"]]
    unrun = [entry for entry in entries if entry["problem"] and not entry["is_failure"]]
    untried = [f"{entry['prompt_tokens']} tokens: {entry['problem']}" for entry in unrun]
    untried += [limit_note] if limit_note else []
    problem = "; ".join(f"a prompt of {entry['prompt_tokens']} tokens: {entry['problem']}" for entry in failures)
    status = "failed" if failures else "passed" if answered else "not_measured"
    return {
        "status": status,
        "lengths_answered": [entry["prompt_tokens"] for entry in answered],
        "largest_jump": _largest_jump([entry for entry in answered if entry["prompt_tokens"] >= SHORTEST]),
        "untried": untried,
        "problem": problem or None,
        "notes": [],
    }


def _largest_jump(entries: Sequence[dict[str, Any]]) -> float | None:
    if len(entries) < FEWEST_LENGTHS:
        return None
    jumps = []
    for shorter, longer in pairwise(entries):
        growth = longer["prompt_tokens"] / shorter["prompt_tokens"]
        for cost in (_reading_ms, _writing_ms):
            before, after = cost(shorter), cost(longer)
            if before and after:
                jumps.append(after / before / growth)
    return round(max(jumps), 3) if jumps else None


def _reading_ms(entry: dict[str, Any]) -> float:
    return float(entry["first_token_ms"]["median"]) / int(entry["prompt_tokens"])


def _writing_ms(entry: dict[str, Any]) -> float:
    speed = float(entry["tokens_per_s"]["median"])
    return 1000.0 / speed if speed else 0.0
