"""Whether a validated artifact may be published: its figures against the recipe's limits. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from enum import StrEnum
from typing import Any

from olivepress.errors import BadRecipe

NOT_MEASURED = "not measured"


class Verdict(StrEnum):
    """What a gate says, and what all of them say together."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_BINDING = "not_binding"
    """There is nothing that the limit could apply to; never the verdict of a whole artifact."""


@dataclass(frozen=True)
class GateLimits:
    """Limits that a validated artifact must keep; None, or False for a check, means that no limit was set.

    Shares are 0 to 1. `min_prompts_passed` binds only where the job has prompts with an expectation. Limits of time
    hold on `timing_hardware`, a hardware class as `olivepress workers --json` and every report name it, and bind
    nowhere else. Limits on quality need the source, and bind nothing on a model directory that came without one.

    Perplexity and top-1 have no usual limit: what int4 costs a sound model goes from nothing to two thirds of the next
    tokens (a flat distribution hangs on a hair), so that only a team that knows its model can name one.
    """

    certificate_required: bool = True
    min_prompts_passed: float | None = 0.8
    """Share of the domain prompts with an expectation that were answered as expected."""
    cross_check: bool = True
    """The files of the model directory are all there and agree with each other, and with the source."""
    tokenizer_parity: bool = True
    """Conversations become the same text and tokens by transformers, by the engine and by the PromptTemplate."""
    edge_cases: bool = True
    """Every edge case ended with an answer or a refusal, none with a crash."""
    consistency: bool = True
    """The model answered at every length of prompt that was tried, and reads token by token as it reads at once."""
    max_kl_over_rounding: float | None = 2.5
    """By how many times the artifact may be farther from its source than rounding alone makes it.

    Measured on 114 sound artifacts (15 architectures, trained and random, six recipes): at most 1.08. Artifacts of
    trained models that are wrong: 2.3 for a changed norm in fp16, 3.6 and more for another rope, 20 and more for a
    matrix of another place, 60 and more for weights of another fine-tune.
    """
    max_kl_divergence: float | None = None
    """Mean nats from the source's next-token distributions to the artifact's, on the held-out text."""
    max_perplexity_increase: float | None = None
    """Share by which the perplexity of the held-out text may be above the source's: 0.05 is five percent."""
    min_top1_agreement: float | None = None
    """Share of the held-out text's positions where artifact and source name the same next token."""
    max_size_ratio: float | None = None
    """Bytes of the artifact for each byte of the source checkpoint."""
    max_peak_rss_bytes: float | None = None
    max_rss_slope: float | None = None
    """Bytes by which memory grows with each session of the soak."""
    max_length_jump: float | None = None
    """By how many times the cost of a token may exceed what the growth of the prompt explains."""
    max_first_token_ms: float | None = None
    min_tokens_per_s: float | None = None
    max_load_ms: float | None = None
    timing_hardware: str | None = None


TIMED = ("max_first_token_ms", "min_tokens_per_s", "max_load_ms")


@dataclass(frozen=True)
class GateResult:
    """One limit, the figure held against it, and the verdict; the note says why in words."""

    name: str
    limit: float | bool
    figure: float | bool | None
    verdict: Verdict
    note: str
    unit: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"verdict": self.verdict.value}


Report = Mapping[str, Any]


@dataclass(frozen=True)
class _Number:
    """A limit of a figure that the report holds under `path`."""

    path: tuple[str, ...]
    unit: str
    words: str
    problem_path: tuple[str, ...] = ()
    """Where the report says why there is no figure."""


NUMBERS: Mapping[str, _Number] = {
    "max_kl_over_rounding": _Number(
        ("quality", "kl_over_rounding"),
        "times",
        "distance from the source, as a multiple of what rounding makes",
        ("quality", "problem"),
    ),
    "max_kl_divergence": _Number(
        ("quality", "held_out", "kl_divergence"), "nats", "mean KL divergence from the source", ("quality", "problem")
    ),
    "max_perplexity_increase": _Number(
        ("quality", "held_out", "perplexity_increase"), "share", "perplexity above the source's", ("quality", "problem")
    ),
    "min_top1_agreement": _Number(
        ("quality", "held_out", "top1_agreement"), "share", "same next token as the source", ("quality", "problem")
    ),
    "max_size_ratio": _Number(("size_ratio",), "share", "bytes for each byte of the source"),
    "max_peak_rss_bytes": _Number(("peak_rss_bytes",), "bytes", "peak memory of the process that ran the model"),
    "max_rss_slope": _Number(("soak", "rss_slope_bytes"), "bytes per session", "growth of memory"),
    "max_length_jump": _Number(("consistency", "largest_jump"), "times", "cost of a token beyond what length explains"),
    "max_first_token_ms": _Number(("first_token_ms", "median"), "ms", "median time to the first token"),
    "min_tokens_per_s": _Number(("tokens_per_s", "median"), "tokens/s", "median speed"),
    "max_load_ms": _Number(("load_ms",), "ms", "time to load"),
}

NEEDS_SOURCE = frozenset(name for name, number in NUMBERS.items() if number.path[0] == "quality")
"""Limits that bind nothing where there is no source to compare with: a model directory imported without it."""

CHECKS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "certificate_required": (("certificate", "status"), "the model chatted inside the real Foundry Local runtime"),
    "cross_check": (("cross_check", "status"), "the files agree with each other and, where it was at hand, the source"),
    "tokenizer_parity": (("tokenizer_parity", "status"), "conversations become the same text and tokens everywhere"),
    "edge_cases": (("edge_cases", "status"), "every edge case ended with an answer or a clean refusal"),
    "consistency": (
        ("consistency", "status"),
        "the model answered at every length that was tried, and reads token by token as at once",
    ),
}


def parse_limits(values: Mapping[str, Any], source: str = "gates") -> GateLimits:
    """Limits from a recipe's mapping.

    Raises:
        BadRecipe: a name is no gate's, and which ones are near; or a value is of the wrong kind or range.
    """
    known = {field.name: field for field in fields(GateLimits)}
    for name, value in values.items():
        if name not in known:
            near = get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there is: {', '.join(known)}"
            raise BadRecipe(f"{source}: there is no gate '{name}'; {hint}")
        if problem := _wrong(name, value):
            raise BadRecipe(f"{source}: {name} {problem}")
    limits = GateLimits(**values)
    timed = [name for name in TIMED if getattr(limits, name) is not None]
    if timed and not limits.timing_hardware:
        raise BadRecipe(
            f"{source}: {timed[0]} holds only on the hardware it was chosen for; set timing_hardware to a hardware "
            "class, as `olivepress workers --json` names it"
        )
    return limits


def _wrong(name: str, value: Any) -> str | None:
    """What is wrong with the value of a limit, and what to write instead."""
    if name in CHECKS:
        return None if isinstance(value, bool) else f"must be true or false, not {value!r}"
    if value is None:
        return None
    if name == "timing_hardware":
        return None if isinstance(value, str) and value.strip() else "must be the text of a hardware class, or null"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        return f"must be a number of at least 0, or null for no limit, not {value!r}"
    if name in ("min_prompts_passed", "min_top1_agreement") and value > 1:
        return f"is a share, so it must be between 0 and 1, not {value!r}"
    return None


def evaluate(limits: GateLimits, report: Report) -> list[GateResult]:
    """One result for each limit that the recipe sets, in their order. A missing figure never passes."""
    results = []
    for field in fields(limits):
        limit = getattr(limits, field.name)
        if limit is None or limit is False or field.name == "timing_hardware":
            continue
        results.append(_judge(field.name, limit, limits, report))
    return results


def verdict_of(results: Sequence[GateResult]) -> Verdict:
    """Failed as soon as one gate failed."""
    failed = any(result.verdict is Verdict.FAILED for result in results)
    return Verdict.FAILED if failed else Verdict.PASSED


def _judge(name: str, limit: Any, limits: GateLimits, report: Report) -> GateResult:
    if name == "min_prompts_passed":
        return _prompts(limit, report)
    if name in CHECKS:
        return _check(name, report)
    if name in NEEDS_SOURCE and report.get("has_source") is False:
        note = f"{NUMBERS[name].words}: there is no source to compare with, so this limit binds nothing"
        return GateResult(name, limit, None, Verdict.NOT_BINDING, note, NUMBERS[name].unit)
    if name in TIMED and (elsewhere := _elsewhere(limits, report)):
        return GateResult(
            name, limit, _at(report, NUMBERS[name].path), Verdict.NOT_BINDING, elsewhere, NUMBERS[name].unit
        )
    return _number(name, limit, report)


def _elsewhere(limits: GateLimits, report: Report) -> str | None:
    """Why a limit of time does not bind here; None where it does."""
    measured_on = _at(report, ("hardware", "class"))
    if limits.timing_hardware == measured_on:
        return None
    return f"measured on '{measured_on}'; the limit is for '{limits.timing_hardware}'"


def _number(name: str, limit: float, report: Report) -> GateResult:
    described = NUMBERS[name]
    figure = _at(report, described.path)
    if not isinstance(figure, int | float) or isinstance(figure, bool) or figure != figure:
        why = _at(report, described.problem_path) if described.problem_path else None
        note = f"{described.words}: {NOT_MEASURED}" + (f" ({why})" if why else "")
        return GateResult(name, limit, None, Verdict.FAILED, note, described.unit)
    is_kept = figure >= limit if name.startswith("min_") else figure <= limit
    verdict = Verdict.PASSED if is_kept else Verdict.FAILED
    asked = "at least" if name.startswith("min_") else "at most"
    note = f"{described.words}: {figure:g}, {asked} {limit:g} {described.unit} asked"
    return GateResult(name, limit, figure, verdict, note, described.unit)


def _check(name: str, report: Report) -> GateResult:
    path, words = CHECKS[name]
    status = _at(report, path)
    if status == "passed":
        # What was not tried is said first: it is no part of what passed.
        untried = [f"not tried: {what}" for what in _at(report, (path[0], "untried")) or []]
        note = "; ".join([*untried, words, *_notes(report, path[0])])
        return GateResult(name, True, True, Verdict.PASSED, note)
    if status == "failed":
        problem = _at(report, (path[0], "problem")) or f"it is not so that {words}"
        return GateResult(name, True, False, Verdict.FAILED, str(problem))
    return GateResult(name, True, None, Verdict.FAILED, NOT_MEASURED)


def _notes(report: Report, part: str) -> list[str]:
    notes = _at(report, (part, "notes")) if part != "certificate" else None
    return [str(note) for note in notes or []]


def _prompts(limit: float, report: Report) -> GateResult:
    name, unit = "min_prompts_passed", "share"
    expected, passed = _at(report, ("prompts", "with_expectation")), _at(report, ("prompts", "passed"))
    if expected is None or passed is None:
        return GateResult(name, limit, None, Verdict.FAILED, "the domain prompts were not asked", unit)
    if expected == 0:
        note = "no domain prompt has an expectation, so this limit binds nothing; add 'expect' to the prompts"
        return GateResult(name, limit, None, Verdict.NOT_BINDING, note, unit)
    share = passed / expected
    verdict = Verdict.PASSED if share >= limit else Verdict.FAILED
    return GateResult(
        name, limit, share, verdict, f"{passed} of {expected} domain prompts were answered as expected", unit
    )


def _at(report: Report, path: Sequence[str]) -> Any:
    """The value under a path of keys; None where there is none."""
    value: Any = report
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
