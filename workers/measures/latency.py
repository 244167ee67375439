"""How fast an open model answers: time to the first token, tokens per second, processor cores in use.

Method: one prompt, answered greedily NEW_TOKENS tokens long (an end-of-sequence token does not end it earlier, so that
models that answer in a word can be compared). One warm-up run, which pays for lazy allocation, is not counted. Then the
prompt is repeated until MAX_RUNS runs or BUDGET_S seconds are reached, at least MIN_RUNS times. Median and 95th
percentile are over runs. To be run under the host's exclusive lock.
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from workers.toolchains.genai import GenaiModel, Generation

NEW_TOKENS = 32
MIN_RUNS = 3
MAX_RUNS = 20
BUDGET_S = 10.0
MS_PER_S = 1000.0


@dataclass(frozen=True)
class Speed:
    """Figures of one model on one prompt.

    `first_token_ms`: milliseconds from handing over the prompt's tokens to having the first new token.
    `tokens_per_s`: tokens after the first, per second. `cpu_cores`: processor seconds per second over all runs.
    """

    prompt_tokens: int
    first_token_ms: tuple[float, ...]
    tokens_per_s: tuple[float, ...]
    cpu_cores: float

    def to_dict(self) -> dict[str, object]:
        """As the report has it."""
        return {
            "first_token_ms": _summary(self.first_token_ms) | {"prompt_tokens": self.prompt_tokens},
            "tokens_per_s": _summary(self.tokens_per_s, slow_is_low=True),
            "cpu_cores": round(self.cpu_cores, 2),
            "runs": len(self.first_token_ms),
        }


def measure_speed(model: GenaiModel, prompt: Sequence[int]) -> Speed:
    """Time the model on this prompt's tokens.

    Raises:
        BadArtifact: the engine fails.
    """
    new_tokens = min(NEW_TOKENS, model.context_length - len(prompt))
    model.generate(prompt, new_tokens, min_new_tokens=new_tokens)
    runs: list[Generation] = []
    cpu_started, started = time.process_time(), time.perf_counter()
    while len(runs) < MAX_RUNS and (len(runs) < MIN_RUNS or time.perf_counter() - started < BUDGET_S):
        runs.append(model.generate(prompt, new_tokens, min_new_tokens=new_tokens))
    cpu_s, elapsed_s = time.process_time() - cpu_started, time.perf_counter() - started
    return Speed(
        prompt_tokens=len(prompt),
        first_token_ms=tuple(run.first_token_s * MS_PER_S for run in runs),
        tokens_per_s=tuple(run.tokens_per_s for run in runs),
        cpu_cores=cpu_s / elapsed_s,
    )


def _summary(values: Sequence[float], *, slow_is_low: bool = False) -> dict[str, float]:
    """Median, and the value that 95 of 100 runs reach or better (nearest rank)."""
    ordered = sorted(values, reverse=slow_is_low)
    p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
    return {"median": round(statistics.median(values), 3), "p95": round(p95, 3)}
