"""What a run says at its end."""

import statistics

from tests.chaos.run import Outcome


def text_of(outcome: Outcome) -> str:
    """The counts, as a small table."""
    lines = [("faults", _counts(outcome.faults)), ("jobs", f"{outcome.jobs}: {_counts(outcome.states)}")]
    lines += [("attempts", _counts(outcome.attempts)), ("late results discarded", str(outcome.discarded))]
    lines += [("versions", str(outcome.versions)), ("published twice", str(outcome.published_twice))]
    lines += [("jobs lost", str(outcome.lost)), ("over after", f"{outcome.settled_s:.1f} s")]
    lines += [("rescued after", _times(outcome.rescue_s)), ("processes gone after", _times(outcome.left_after_s))]
    lines += [("problems", str(len(outcome.problems)))]
    return "\n".join(f"  {name:<24}{value}" for name, value in lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items())) or "none"


def _times(times: list[float]) -> str:
    if not times:
        return "-"
    return f"median {statistics.median(times):.2f} s, at most {max(times):.2f} s, of {len(times)}"
