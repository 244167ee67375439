"""Figures with their spread: what a repeated measurement may differ by."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

MAD_TO_DEVIATION = 1.4826
"""Of a normal distribution; Rousseeuw and Croux, "Alternatives to the median absolute deviation" (1993)."""
DEVIATIONS = 3.0
LEAST_SHARE = 0.25
"""What medians of one model differed by between validations on one machine, other work beside them, whatever the runs
of one validation said: clock, caches and neighbours change more slowly than runs follow each other."""
WAITED_AT_MOST = 0.9
MANY_RUNS = 10
RANGE_TO_DEVIATION = (1.0, 1.0, 1.13, 1.69, 2.06, 2.33, 2.53, 2.70, 2.85, 2.97)
"""Of so many runs; Tippett, "On the extreme individuals and the range of samples" (1925)."""
CONFIDENCE = 0.95


def timed(values: Sequence[float], *, slow_is_low: bool = False, waited: float = 0.0) -> dict[str, float]:
    """Median, p95 and spread of repeated timed runs, in their unit.

    `p95` is the value that 95 of 100 runs reach or better (nearest rank). `spread` is how far from the median that of
    another validation on the same hardware may lie: three robust standard deviations of the runs (median absolute
    deviation; of few runs their range), at least LEAST_SHARE of the median, and at least what the runs would differ by
    on an idle machine.

    Args:
        waited: the share of the time that the process waited for a processor (workers.measures.contention).
    """
    ordered = sorted(values, reverse=slow_is_low)
    median = statistics.median(values)
    waited = min(waited, WAITED_AT_MOST)
    # A speed on an idle machine, with what that differs by itself; of a time the distance is smaller.
    least = ((1 + LEAST_SHARE) / (1 - waited) - 1) * median
    return {
        "median": round(median, 3),
        "p95": round(ordered[math.ceil(0.95 * len(ordered)) - 1], 3),
        "spread": round(max(DEVIATIONS * _deviation(values, median), least), 3),
    }


def _deviation(values: Sequence[float], median: float) -> float:
    """The standard deviation, estimated so that a single run among many does not move it."""
    if len(values) < MANY_RUNS:
        return (max(values) - min(values)) / RANGE_TO_DEVIATION[len(values)]
    return MAD_TO_DEVIATION * statistics.median(abs(value - median) for value in values)


def theil_sen(values: Sequence[float], times: Sequence[float] | None = None) -> dict[str, Any]:
    """The slope of a series that a few jumps do not bend: the median of the slopes between all pairs.

    Source: Theil (1950); Sen, "Estimates of the regression coefficient based on Kendall's tau" (1968), whose interval
    at CONFIDENCE is `low` to `high`.

    Args:
        values: at least two.
        times: of the values, growing; 0, 1, 2 … where None.

    Returns:
        {"slope", "low", "high"}, in units of the values for each unit of time.
    """
    series = np.asarray(values, dtype=np.float64)
    moments = np.arange(len(series), dtype=np.float64) if times is None else np.asarray(times, dtype=np.float64)
    earlier, later = np.triu_indices(len(series), k=1)
    slopes = np.sort((series[later] - series[earlier]) / (moments[later] - moments[earlier]))
    count = len(series)
    # Kendall's variance without ties: with ties the interval is wider than need be.
    half = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = slopes[max(0, math.floor((len(slopes) - half) / 2))]
    high = slopes[min(len(slopes) - 1, math.ceil((len(slopes) + half) / 2))]
    return {"slope": float(np.median(slopes)), "low": float(low), "high": float(high)}
