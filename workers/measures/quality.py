"""What conversion cost: the artifact's next-token distributions against those of its source, on the same tokens.

Method: both models read the same tokens, teacher-forced: a held-out text in windows, and the domain prompts with the
source's own greedy answers (only the answers' tokens count). Per position: Kullback-Leibler divergence from the source
in nats, whether both name the same next token, and what each gives to the token that really comes next; perplexity is
the exponential of the mean of the latter. KL is over the source's 128 likeliest tokens and the rest as one (see
workers.measures.token_comparison). The spread is a bootstrap interval over positions: Efron, "Bootstrap methods"
(1979), 95 %, with a fixed seed. The yardstick is what rounding alone does to this very source in torch, so that
`kl_over_rounding` says how many times more than that the artifact differs.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from workers.measures.reference_file import ANSWERS, HELD_OUT, Reference, Section
from workers.measures.token_comparison import Floats, Logits, kl_divergences, target_logprobs

RESAMPLES = 200
SEED = 1
ARITHMETIC_KL = 1e-5
"""What two runtimes differ by in fp32: below this nothing is said of rounding."""

LogitsOf = Callable[[Sequence[int]], Logits]


class OtherVocabulary(Exception):
    """The artifact has another number of logits than its source."""


def measure_quality(
    reference: Reference,
    logits_of: LogitsOf,
    yardstick: str,
    report_progress: Callable[[float], None],
    context_length: int | None = None,
) -> dict[str, Any]:
    """The artifact's quality figures.

    Args:
        logits_of: the artifact's logits (positions x vocabulary) for these tokens, read from an empty context.
        yardstick: which of the reference's yardsticks fits the artifact's rounding.
        context_length: tokens that the artifact takes, where that may be fewer than the reference's texts have; what
            is beyond is not compared.

    Returns:
        {"held_out" and "answers": None or {"positions", "perplexity", "source_perplexity", "perplexity_increase"
        (share), "top1_agreement" (share), "kl_divergence" (nats), and their "spread": {name: [low, high]}},
        "yardstick": {"name", "kl"}, "kl_over_rounding", "problem": None}

    Raises:
        OtherVocabulary: nothing can be compared.
    """
    sections = [section for each in reference.sections if (section := _fitting(each, context_length))]
    compared = [
        _compared(section, logits_of, lambda share, place=place: report_progress((place + share) / len(sections)))
        for place, section in enumerate(sections)
    ]
    figures: dict[str, Any] = {}
    for kind in (HELD_OUT, ANSWERS):
        parts = [part for part, section in zip(compared, sections, strict=True) if section.kind == kind]
        figures[kind] = _figures(parts) if parts else None
    rounding = reference.yardsticks[yardstick].kl if yardstick in reference.yardsticks else None
    kl = np.concatenate([part[0] for part in compared]).astype(np.float64) if compared else None
    ratio = None if kl is None or rounding is None else float(kl.mean() / max(rounding, ARITHMETIC_KL))
    return figures | {
        "yardstick": {"name": yardstick, "kl": rounding},
        "kl_over_rounding": None if ratio is None else round(ratio, 3),
        "problem": None,
    }


def _fitting(section: Section, context_length: int | None) -> Section | None:
    """As much of a section as a context takes with a token to come; None for nothing."""
    length = len(section.tokens) if context_length is None else min(len(section.tokens), context_length - 1)
    if length <= section.start:
        return None
    kept = section.distribution.first(length - section.start)
    return replace(section, tokens=section.tokens[:length], distribution=kept)


Compared = tuple[Floats, Floats, Floats, Floats]
"""Per position: KL, same likeliest token (0 or 1), log-probability of the next token by artifact and by source."""


def _compared(section: Section, logits_of: LogitsOf, report_progress: Callable[[float], None]) -> Compared:
    report_progress(0.0)
    logits = logits_of(section.tokens)[section.positions()]
    distribution = section.distribution
    if max(int(distribution.top_ids.max()), int(distribution.targets.max())) >= logits.shape[-1]:
        raise OtherVocabulary(f"the artifact has {logits.shape[-1]} logits, which is fewer than its source has tokens")
    return (
        kl_divergences(distribution, logits),
        (logits.argmax(-1) == distribution.top_ids[:, 0]).astype(np.float32),
        target_logprobs(logits, distribution.targets),
        distribution.target_logprobs,
    )


def _figures(parts: Sequence[Compared]) -> dict[str, Any]:
    kl, same, ours, theirs = (
        np.concatenate([part[column] for part in parts]).astype(np.float64) for column in range(4)
    )
    drawn = np.random.default_rng(SEED).integers(len(kl), size=(RESAMPLES, len(kl)))
    increase = np.exp((theirs[drawn] - ours[drawn]).mean(-1)) - 1

    def interval(values: Any) -> list[float]:
        return [_rounded(float(value)) for value in np.quantile(values, (0.025, 0.975))]

    return {
        "positions": len(kl),
        "perplexity": _rounded(float(np.exp(-ours.mean()))),
        "source_perplexity": _rounded(float(np.exp(-theirs.mean()))),
        "perplexity_increase": _rounded(float(np.exp(theirs.mean() - ours.mean()) - 1)),
        "top1_agreement": _rounded(float(same.mean())),
        "kl_divergence": _rounded(float(kl.mean())),
        "spread": {
            "perplexity_increase": interval(increase),
            "top1_agreement": interval(same[drawn].mean(-1)),
            "kl_divergence": interval(kl[drawn].mean(-1)),
        },
    }


def _rounded(value: float) -> float:
    """Six significant digits: more is noise, and not finite is not JSON."""
    return float(f"{value:.6g}") if np.isfinite(value) else 1e300
