"""How fast an open model answers: time to the first token, tokens per second, processor cores in use.

Unit: milliseconds from handing over the prompt's tokens to having the first new token; new tokens after the first per
second; processor seconds per second.

Method: answered greedily, so many tokens long (an end-of-sequence token does not end it earlier, so that models that
answer in a word can be compared). One warm-up run, which pays for lazy allocation, is kept apart and not counted. Then
the prompt is repeated until MAX_RUNS runs or its budget of seconds are reached, at least MIN_RUNS times. Median and
95th percentile are over runs; workers.measures.spread has the spread. To be run under the host's exclusive lock.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from olivepress.errors import BadArtifact
from workers.measures.contention import Contention
from workers.measures.memory import rss_bytes
from workers.measures.spread import timed
from workers.toolchains.genai import GenaiModel, Generation

NEW_TOKENS = 32
MIN_RUNS = 3
MAX_RUNS = 20
BUDGET_S = 3.0
MS_PER_S = 1000.0

LENGTHS = (16, 128, 512, 1024)
NEW_TOKENS_AT_LENGTH = 16
FEWEST_RUNS_AT_LENGTH, MOST_RUNS_AT_LENGTH = 5, 20
# A length whose runs take long is run once more, or not; beyond the fewest runs it is repeated no longer than this.
FEWEST_FOR_S, REPEATED_FOR_S = 4.0, 0.5
LENGTHS_BUDGET_S = 30.0
LIMIT_CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Speed:
    """Figures of one model on one prompt, one entry a run; `warm_up_ms` is the first token of the run before them.

    `waited` is the share of the time that the process waited for a processor.
    """

    prompt_tokens: int
    warm_up_ms: float
    first_token_ms: tuple[float, ...]
    tokens_per_s: tuple[float, ...]
    cpu_cores: float
    waited: float

    def to_dict(self) -> dict[str, object]:
        """As the report has it."""
        return {
            "first_token_ms": timed(self.first_token_ms, waited=self.waited) | {"prompt_tokens": self.prompt_tokens},
            "tokens_per_s": timed(self.tokens_per_s, slow_is_low=True, waited=self.waited),
            "warm_up_ms": round(self.warm_up_ms, 3),
            "cpu_cores": round(self.cpu_cores, 2),
            "waited_share": round(self.waited, 3),
            "runs": len(self.first_token_ms),
        }


def measure_speed(model: GenaiModel, prompt: Sequence[int]) -> Speed:
    """Time the model on this prompt's tokens.

    Raises:
        BadArtifact: the engine fails.
    """
    new_tokens = min(NEW_TOKENS, model.context_length - len(prompt))
    warm_up = model.generate(prompt, new_tokens, min_new_tokens=new_tokens)
    runs: list[Generation] = []
    contention = Contention()
    cpu_started, started = time.process_time(), time.perf_counter()
    while len(runs) < MAX_RUNS and (len(runs) < MIN_RUNS or time.perf_counter() - started < BUDGET_S):
        runs.append(model.generate(prompt, new_tokens, min_new_tokens=new_tokens))
    cpu_s, elapsed_s = time.process_time() - cpu_started, time.perf_counter() - started
    return Speed(
        prompt_tokens=len(prompt),
        warm_up_ms=warm_up.first_token_s * MS_PER_S,
        first_token_ms=tuple(run.first_token_s * MS_PER_S for run in runs),
        tokens_per_s=tuple(run.tokens_per_s for run in runs),
        cpu_cores=cpu_s / elapsed_s,
        waited=contention.share(),
    )


def lengths_to_try(context_length: int, cache_bytes_per_token: int | None) -> tuple[list[int], str | None]:
    """Prompt lengths in tokens, the longest that leaves room for an answer last; and why that is not the limit.

    Foundry Local and the engine make room for the whole prompt at once, so the limit of a very long context is left
    out where its cache alone would take more than LIMIT_CACHE_BYTES.
    """
    limit = context_length - NEW_TOKENS_AT_LENGTH
    lengths = [length for length in LENGTHS if length < limit]
    if cache_bytes_per_token and context_length * cache_bytes_per_token > LIMIT_CACHE_BYTES:
        room = f"{context_length * cache_bytes_per_token / 2**30:.1f} GiB"
        return lengths, f"the limit of {context_length} tokens: its cache alone takes {room}"
    return [*lengths, limit] if limit > 0 else lengths, None


def measure_lengths(
    model: GenaiModel, text: Sequence[int], lengths: Sequence[int], report_progress: Callable[[float], None]
) -> list[dict[str, Any]]:
    """Time prompts of these lengths, cut from the tokens of a text, which is repeated as often as it takes.

    A length whose runs are not expected to fit into what is left of LENGTHS_BUDGET_S is run fewer times, or not at
    all; its entry then says so.

    Returns:
        Of each length {"prompt_tokens", "runs", "first_token_ms", "tokens_per_s": as `timed` gives them or None,
        "rss_bytes": while the session is open, "problem": why there is no figure, or None}
    """
    started = time.perf_counter()
    entries: list[dict[str, Any]] = []
    seconds_per_token = 0.0
    for place, length in enumerate(lengths):
        report_progress(place / len(lengths))
        left_s = LENGTHS_BUDGET_S - (time.perf_counter() - started)
        expected_s = seconds_per_token * length
        if expected_s > left_s:
            entries.append(_empty(length) | {"problem": _too_long(expected_s)})
            continue
        prompt = [text[position % len(text)] for position in range(length)]
        entry, seconds = _at_length(model, prompt, left_s)
        entries.append(entry)
        seconds_per_token = seconds / length if seconds else seconds_per_token
    return entries


def _at_length(model: GenaiModel, prompt: Sequence[int], budget_s: float) -> tuple[dict[str, Any], float]:
    """The entry of one length, and the seconds that a run takes."""
    started = time.perf_counter()
    contention = Contention()
    runs: list[Generation] = []
    memory: list[int] = []
    try:
        while _goes_on(len(runs), time.perf_counter() - started, budget_s):
            runs.append(
                model.generate(
                    prompt,
                    NEW_TOKENS_AT_LENGTH,
                    min_new_tokens=NEW_TOKENS_AT_LENGTH,
                    at_end=lambda: memory.append(rss_bytes()),
                )
            )
    except BadArtifact as error:
        return _empty(len(prompt)) | {"problem": str(error), "is_failure": True}, 0.0
    waited = contention.share()
    measured = {
        "runs": len(runs),
        "first_token_ms": timed([run.first_token_s * MS_PER_S for run in runs], waited=waited),
        "tokens_per_s": timed([run.tokens_per_s for run in runs], slow_is_low=True, waited=waited),
        "rss_bytes": max(memory),
    }
    return _empty(len(prompt)) | measured, (time.perf_counter() - started) / len(runs)


def _goes_on(runs: int, elapsed_s: float, budget_s: float) -> bool:
    if runs >= MOST_RUNS_AT_LENGTH:
        return False
    wanted_s = FEWEST_FOR_S if runs < FEWEST_RUNS_AT_LENGTH else REPEATED_FOR_S
    return runs == 0 or elapsed_s < min(budget_s, wanted_s)


def _empty(length: int) -> dict[str, Any]:
    return {
        "prompt_tokens": length,
        "runs": 0,
        "first_token_ms": None,
        "tokens_per_s": None,
        "rss_bytes": None,
        "problem": None,
        "is_failure": False,
    }


def _too_long(expected_s: float) -> str:
    return f"a run takes about {expected_s:.0f} s, and {LENGTHS_BUDGET_S:.0f} s were for all lengths"
