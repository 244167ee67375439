"""Whether a validated artifact may be published: its figures against the recipe's limits. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from olivepress.recipes import GateLimits


class Verdict(StrEnum):
    """What a gate says, and what all of them say together."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_BINDING = "not_binding"
    """There is nothing that the limit could apply to; never the verdict of a whole artifact."""


@dataclass(frozen=True)
class Figures:
    """What was measured; None where a measure gave nothing."""

    is_certified: bool | None = None
    prompts_with_expectation: int | None = None
    prompts_passed: int | None = None


@dataclass(frozen=True)
class GateResult:
    """One limit, the figure held against it, and the verdict; the note says why in words."""

    name: str
    limit: float | bool
    figure: float | bool | None
    verdict: Verdict
    note: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"verdict": self.verdict.value}


def evaluate(limits: GateLimits, figures: Figures) -> list[GateResult]:
    """One result for each limit that the recipe sets. A missing figure never passes."""
    results = []
    if limits.certificate_required:
        results.append(_certificate(figures.is_certified))
    if limits.min_prompts_passed is not None:
        results.append(_prompts(limits.min_prompts_passed, figures))
    return results


def verdict_of(results: Sequence[GateResult]) -> Verdict:
    """Failed as soon as one gate failed."""
    failed = any(result.verdict is Verdict.FAILED for result in results)
    return Verdict.FAILED if failed else Verdict.PASSED


def _certificate(is_certified: bool | None) -> GateResult:
    note = {
        True: "the model chatted inside the real Foundry Local runtime",
        False: "the model did not chat inside the real Foundry Local runtime; the certificate says why",
        None: "no certificate was made",
    }[is_certified]
    verdict = Verdict.PASSED if is_certified else Verdict.FAILED
    return GateResult("certificate_required", True, is_certified, verdict, note)


def _prompts(limit: float, figures: Figures) -> GateResult:
    name = "min_prompts_passed"
    expected, passed = figures.prompts_with_expectation, figures.prompts_passed
    if expected is None or passed is None:
        return GateResult(name, limit, None, Verdict.FAILED, "the domain prompts were not asked")
    if expected == 0:
        note = "no domain prompt has an expectation, so this limit binds nothing; add 'expect' to the prompts"
        return GateResult(name, limit, None, Verdict.NOT_BINDING, note)
    share = passed / expected
    verdict = Verdict.PASSED if share >= limit else Verdict.FAILED
    return GateResult(name, limit, share, verdict, f"{passed} of {expected} domain prompts were answered as expected")
