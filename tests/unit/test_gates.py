"""A figure is held against a limit; what was not measured never passes."""

import pytest

from olivepress.gates import Figures, GateResult, Verdict, evaluate, verdict_of
from olivepress.recipes import GateLimits


def _verdicts(results: list[GateResult]) -> dict[str, Verdict]:
    return {result.name: result.verdict for result in results}


@pytest.mark.parametrize(("is_certified", "verdict"), [(True, "passed"), (False, "failed"), (None, "failed")])
def test_only_a_certificate_passes_the_certificate_gate(is_certified: bool | None, verdict: str) -> None:
    results = evaluate(GateLimits(min_prompts_passed=None), Figures(is_certified=is_certified))

    assert _verdicts(results) == {"certificate_required": verdict}
    assert verdict_of(results) == verdict


@pytest.mark.parametrize(
    ("passed", "verdict"), [(8, Verdict.PASSED), (7, Verdict.FAILED), (10, Verdict.PASSED), (0, Verdict.FAILED)]
)
def test_the_share_of_answered_prompts_must_reach_the_limit(passed: int, verdict: Verdict) -> None:
    results = evaluate(
        GateLimits(certificate_required=False, min_prompts_passed=0.8),
        Figures(prompts_with_expectation=10, prompts_passed=passed),
    )

    assert [(result.verdict, result.figure) for result in results] == [(verdict, passed / 10)]


def test_without_expectations_the_prompt_gate_binds_nothing_and_says_so() -> None:
    results = evaluate(GateLimits(), Figures(is_certified=True, prompts_with_expectation=0, prompts_passed=0))

    assert _verdicts(results)["min_prompts_passed"] is Verdict.NOT_BINDING
    assert "no domain prompt has an expectation" in results[1].note
    assert verdict_of(results) is Verdict.PASSED


def test_prompts_that_were_not_asked_do_not_pass() -> None:
    results = evaluate(GateLimits(certificate_required=False, min_prompts_passed=0.0), Figures())

    assert verdict_of(results) is Verdict.FAILED


def test_one_failed_gate_fails_the_artifact() -> None:
    results = evaluate(GateLimits(), Figures(is_certified=True, prompts_with_expectation=2, prompts_passed=1))

    assert _verdicts(results) == {"certificate_required": Verdict.PASSED, "min_prompts_passed": Verdict.FAILED}
    assert verdict_of(results) is Verdict.FAILED


def test_without_limits_there_are_no_gates_and_the_artifact_passes() -> None:
    results = evaluate(GateLimits(certificate_required=False, min_prompts_passed=None), Figures())

    assert results == []
    assert verdict_of(results) is Verdict.PASSED


def test_a_result_is_plain_json() -> None:
    result = evaluate(GateLimits(min_prompts_passed=None), Figures(is_certified=True))[0]

    assert result.to_dict() == {
        "name": "certificate_required",
        "limit": True,
        "figure": True,
        "verdict": "passed",
        "note": "the model chatted inside the real Foundry Local runtime",
    }
