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
CONFIDENCE = 0.95


def timed(values: Sequence[float], *, slow_is_low: bool = False) -> dict[str, float]:
    """Median, p95 and spread of repeated timed runs, in their unit.

    `p95` is the value that 95 of 100 runs reach or better (nearest rank). `spread` is how far from the median that of
    another validation on the same hardware may lie: three robust standard deviations (median absolute deviation) of
    the runs, and at least LEAST_SHARE of the median.
    """
    ordered = sorted(values, reverse=slow_is_low)
    median = statistics.median(values)
    deviation = MAD_TO_DEVIATION * statistics.median(abs(value - median) for value in values)
    return {
        "median": round(median, 3),
        "p95": round(ordered[math.ceil(0.95 * len(ordered)) - 1], 3),
        "spread": round(max(DEVIATIONS * deviation, LEAST_SHARE * median), 3),
    }


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
