"""Whether a model that reads token by token, as it does while it answers, says the same as when it reads all at once.

Unit: mean Kullback-Leibler divergence in nats, from the next-token distributions of a text that is read at once to
those of the same text with its second half handed over one token after the other. Only the latter uses what the model
has kept of earlier tokens, and quality is measured at once: a cache that is wired wrongly is seen here and nowhere
else. Measured on 24 sound artifacts (9 architectures, three precisions): at most 0.00001; with the caches of two
layers, or of keys and values, exchanged: 0.026 and more.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workers.measures.token_comparison import Logits, full_divergences

TOKENS = 64
FEWEST_TOKENS = 4
LIMIT_KL, LIMIT_KL_ALONE = 0.01, 0.1
"""What a model may differ by in any case; and one whose source, and so what rounding does to it, is not known."""

LogitsOf = Callable[[Sequence[int]], Logits]
StepwiseLogitsOf = Callable[[Sequence[int], int], Logits]


def measure_cached_reading(
    text: Sequence[int], context_length: int, at_once: LogitsOf, stepwise: StepwiseLogitsOf, rounding: float | None
) -> dict[str, Any]:
    """Both readings of the beginning of a text.

    Activations that are read at once are rounded together where a graph rounds them as a whole (dynamic int8: 0.012
    nats measured, a quarter of what rounding alone does to that model).

    Args:
        text: tokens of ordinary text.
        at_once: logits, positions x vocabulary, of these tokens.
        stepwise: the same from the token before the given place on, where tokens from that place on come singly.
        rounding: nats that rounding alone costs this model (its yardstick), or None; it may differ by as much here.

    Returns:
        {"positions", "kl_divergence": nats, "limit": nats, "problem": str | None}; both figures are None for a context
        that has no room for it.
    """
    tokens = [text[place % len(text)] for place in range(min(TOKENS, context_length - 1))]
    limit = LIMIT_KL_ALONE if rounding is None else max(LIMIT_KL, rounding)
    if len(tokens) < FEWEST_TOKENS:
        return {"positions": 0, "kl_divergence": None, "limit": limit, "problem": None}
    start = len(tokens) // 2
    kl = float(np.mean(full_divergences(at_once(tokens)[start - 1 :], stepwise(tokens, start))))
    # Not a number is beyond every limit.
    problem = None if kl <= limit else _problem(kl, limit)
    figure = float(f"{kl:.6g}") if np.isfinite(kl) else None
    return {"positions": len(tokens) - start + 1, "kl_divergence": figure, "limit": limit, "problem": problem}


def _problem(kl: float, limit: float) -> str:
    return (
        "a text that is read token by token is continued otherwise than one that is read at once "
        f"({kl:.3g} nats, rounding explains at most {limit:.3g}): what the model keeps of earlier tokens is wrong"
    )


def with_cached_reading(consistency: dict[str, Any], reading: dict[str, Any]) -> dict[str, Any]:
    """What lengths of prompts said, with this."""
    problems = [problem for problem in (consistency["problem"], reading["problem"]) if problem]
    status = "failed" if reading["problem"] else consistency["status"]
    return consistency | {"status": status, "problem": "; ".join(problems) or None, "cached_reading": reading}
