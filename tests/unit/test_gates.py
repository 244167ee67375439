"""A figure is held against a limit; what was not measured never passes."""

from dataclasses import fields
from typing import Any

import pytest

from olivepress.errors import BadRecipe
from olivepress.gates import (
    CHECKS,
    NEEDS_SOURCE,
    NUMBERS,
    TIMED,
    GateLimits,
    GateResult,
    Verdict,
    evaluate,
    parse_limits,
    verdict_of,
)

HARDWARE = "A processor / 2 cores / 24 GiB"
NO_LIMITS: dict[str, Any] = dict.fromkeys(CHECKS, False) | {"min_prompts_passed": None, "max_kl_over_rounding": None}


def limits(**wanted: Any) -> GateLimits:
    """These limits and no others."""
    return GateLimits(**NO_LIMITS | wanted)


def report_with(name: str, figure: Any) -> dict[str, Any]:
    """A report with this figure where the gate looks for it."""
    path = NUMBERS[name].path if name in NUMBERS else CHECKS[name][0]
    report: dict[str, Any] = {"hardware": {"class": HARDWARE}}
    place = report
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = figure
    return report


def verdicts(results: list[GateResult]) -> dict[str, Verdict]:
    return {result.name: result.verdict for result in results}


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize(
    ("status", "verdict"), [("passed", "passed"), ("failed", "failed"), ("not_measured", "failed"), (None, "failed")]
)
def test_only_a_check_that_was_made_and_passed_passes_its_gate(name: str, status: str | None, verdict: str) -> None:
    results = evaluate(limits(**{name: True}), report_with(name, status))

    assert verdicts(results) == {name: verdict}
    assert verdict_of(results) == verdict


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    ("figure", "verdict_of_max"),
    [(0.4, "passed"), (0.5, "passed"), (0.6, "failed"), (None, "failed"), (float("nan"), "failed"), ("0.4", "failed")],
)
def test_a_figure_must_keep_its_limit_and_a_missing_one_never_does(name: str, figure: Any, verdict_of_max: str) -> None:
    results = evaluate(limits(**{name: 0.5}, timing_hardware=HARDWARE), report_with(name, figure))

    verdict = verdict_of_max
    if name.startswith("min_") and isinstance(figure, float) and figure == figure and figure != 0.5:
        verdict = "failed" if verdict_of_max == "passed" else "passed"
    assert verdicts(results) == {name: verdict}
    assert results[0].unit


@pytest.mark.parametrize("name", TIMED)
def test_a_limit_of_time_binds_only_on_its_hardware(name: str) -> None:
    too_slow = 0.0 if name.startswith("min_") else 1e9
    report = report_with(name, too_slow)

    here = evaluate(limits(**{name: 0.5}, timing_hardware=HARDWARE), report)
    elsewhere = evaluate(limits(**{name: 0.5}, timing_hardware="Another / 8 cores / 64 GiB"), report)

    assert verdicts(here) == {name: Verdict.FAILED}
    assert verdicts(elsewhere) == {name: Verdict.NOT_BINDING}
    assert HARDWARE in elsewhere[0].note and "Another" in elsewhere[0].note
    assert elsewhere[0].figure == too_slow


def test_an_empty_report_passes_no_gate_at_all() -> None:
    every: dict[str, Any] = dict.fromkeys(CHECKS, True) | dict.fromkeys(NUMBERS, 0.5) | {"min_prompts_passed": 0.0}

    results = evaluate(GateLimits(**every, timing_hardware="x"), {"hardware": {"class": "x"}})

    assert len(results) == len(fields(GateLimits)) - 1
    assert {result.verdict for result in results} == {Verdict.FAILED}


def test_every_limit_is_a_number_a_check_or_the_share_of_prompts() -> None:
    names = {field.name for field in fields(GateLimits)} - {"min_prompts_passed", "timing_hardware"}

    assert names == {*NUMBERS, *CHECKS}
    assert {"max_kl_over_rounding", "max_perplexity_increase", "min_top1_agreement"} <= NEEDS_SOURCE <= set(NUMBERS)


@pytest.mark.parametrize("name", sorted(NEEDS_SOURCE))
def test_a_limit_that_needs_the_source_binds_nothing_without_one_and_never_passes(name: str) -> None:
    without = evaluate(limits(**{name: 0.5}), {"has_source": False, "quality": {"problem": "not at hand"}})
    unmeasured = evaluate(limits(**{name: 0.5}), {"has_source": True, "quality": {"problem": "the engine crashed"}})

    assert verdicts(without) == {name: Verdict.NOT_BINDING}
    assert "no source to compare with" in without[0].note
    assert verdicts(unmeasured) == {name: Verdict.FAILED}


def test_the_distance_from_the_source_is_limited_unless_a_recipe_says_otherwise() -> None:
    assert GateLimits().max_kl_over_rounding == 2.5
    assert parse_limits({"max_kl_over_rounding": None}).max_kl_over_rounding is None


@pytest.mark.parametrize(("passed", "verdict"), [(8, "passed"), (7, "failed"), (10, "passed"), (0, "failed")])
def test_the_share_of_answered_prompts_must_reach_the_limit(passed: int, verdict: str) -> None:
    report = {"prompts": {"with_expectation": 10, "passed": passed}}

    results = evaluate(limits(min_prompts_passed=0.8), report)

    assert [(result.verdict, result.figure) for result in results] == [(verdict, passed / 10)]


def test_without_expectations_the_prompt_gate_binds_nothing_and_says_so() -> None:
    results = evaluate(limits(min_prompts_passed=0.8), {"prompts": {"with_expectation": 0, "passed": 0}})

    assert verdicts(results) == {"min_prompts_passed": Verdict.NOT_BINDING}
    assert "no domain prompt has an expectation" in results[0].note
    assert verdict_of(results) is Verdict.PASSED


def test_prompts_that_were_not_asked_do_not_pass() -> None:
    assert verdict_of(evaluate(limits(min_prompts_passed=0.0), {})) is Verdict.FAILED


def test_one_failed_gate_fails_the_artifact() -> None:
    report = report_with("certificate_required", "passed") | {"prompts": {"with_expectation": 2, "passed": 1}}

    results = evaluate(limits(certificate_required=True, min_prompts_passed=0.8), report)

    assert verdicts(results) == {"certificate_required": Verdict.PASSED, "min_prompts_passed": Verdict.FAILED}
    assert verdict_of(results) is Verdict.FAILED


def test_without_limits_there_are_no_gates_and_the_artifact_passes() -> None:
    assert evaluate(limits(), {}) == []
    assert verdict_of([]) is Verdict.PASSED


def test_a_missing_figure_is_told_with_the_measures_own_reason() -> None:
    report = {"quality": {"problem": "the source was not at hand"}}

    (result,) = evaluate(limits(max_kl_divergence=0.1), report)

    assert result.note == "mean KL divergence from the source: not measured (the source was not at hand)"


def test_a_length_that_was_not_tried_is_told_before_what_passed() -> None:
    part = {"status": "passed", "untried": ["the limit of 131072 tokens: its cache alone takes 14.0 GiB"], "notes": []}

    (result,) = evaluate(limits(consistency=True), {"consistency": part})

    assert result.note.startswith("not tried: the limit of 131072 tokens: its cache alone takes 14.0 GiB; the model")


def test_a_failed_check_is_told_with_its_problem() -> None:
    report = {"cross_check": {"status": "failed", "problem": "the graph has 2 layers and genai_config.json has 3"}}

    (result,) = evaluate(limits(cross_check=True), report)

    assert result.to_dict() == {
        "name": "cross_check",
        "limit": True,
        "figure": False,
        "verdict": "failed",
        "note": "the graph has 2 layers and genai_config.json has 3",
        "unit": "",
    }


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_first_tokn_ms": 5}, "there is no gate 'max_first_tokn_ms'; did you mean max_first_token_ms"),
        ({"zzz": 1}, "there is no gate 'zzz'; there is: certificate_required, "),
        ({"max_first_token_ms": 5}, "max_first_token_ms holds only on the hardware .* timing_hardware"),
        ({"min_top1_agreement": 1.5}, "between 0 and 1, not 1.5"),
        ({"max_kl_divergence": -1}, "at least 0, or null for no limit, not -1"),
        ({"max_kl_divergence": True}, "must be a number"),
        ({"max_kl_divergence": float("inf")}, "must be a number"),
        ({"edge_cases": 1}, "edge_cases must be true or false, not 1"),
        ({"certificate_required": None}, "must be true or false"),
        ({"timing_hardware": " "}, "must be the text of a hardware class"),
    ],
)
def test_limits_that_cannot_be_are_refused_with_what_to_write(values: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRecipe, match=words):
        parse_limits(values)


def test_limits_are_read_as_they_are_written() -> None:
    wanted = {"max_first_token_ms": 5, "timing_hardware": HARDWARE, "min_prompts_passed": None, "consistency": False}

    found = parse_limits(wanted)

    assert (found.max_first_token_ms, found.timing_hardware, found.min_prompts_passed) == (5, HARDWARE, None)
    assert found.consistency is False
    assert found.certificate_required is True
