"""What steps are predicted to take, and how past attempts correct it."""

import pytest

from olivepress.conversion_cost import Sizes
from olivepress.jobs import JobKind, StepKind
from olivepress.recipes.recipe import BUILT_IN, recipe_named
from olivepress.step_cost import (
    Ratio,
    corrected,
    cost_family,
    cost_family_of,
    costs_of_job,
    expected,
    predict,
    sizes_of,
)
from olivepress.steps import plan

# Measured once with this model on two cores: bytes as the worker's sampling saw them.
MODEL = Sizes(221_000_000, 110_507_520, 8_192_000, 8_192_000, tied_embeddings=True)
MEASURED = [
    ("cpu-int4", StepKind.CONVERT, 1.18e9),
    ("cpu-int8", StepKind.CONVERT, 1.24e9),
    ("cpu-fp32", StepKind.CONVERT, 1.10e9),
    ("cpu-int4", StepKind.VALIDATE, 0.687e9),
    ("cpu-int8", StepKind.VALIDATE, 0.728e9),
    ("cpu-fp32", StepKind.VALIDATE, 1.02e9),
]


@pytest.mark.parametrize(("recipe", "kind", "used_bytes"), MEASURED)
def test_memory_is_predicted_within_a_quarter_of_what_was_measured(
    recipe: str, kind: StepKind, used_bytes: float
) -> None:
    assert predict(kind, MODEL, recipe_named(recipe)).memory_bytes == pytest.approx(used_bytes, rel=0.25)


@pytest.mark.parametrize("kind", [StepKind.CONVERT, StepKind.VALIDATE, StepKind.PACKAGE, StepKind.INGEST])
def test_a_larger_model_takes_more_of_everything(kind: StepKind) -> None:
    recipe = recipe_named("cpu-int4")
    larger = Sizes(*(10 * value for value in (221_000_000, 110_507_520, 8_192_000, 8_192_000)), tied_embeddings=True)
    small, large = predict(kind, MODEL, recipe), predict(kind, larger, recipe)
    assert large.memory_bytes >= small.memory_bytes
    assert large.scratch_bytes >= small.scratch_bytes
    assert small.seconds is not None and large.seconds is not None
    assert large.seconds > small.seconds


def test_before_ingest_only_the_memory_of_reading_is_known() -> None:
    cost = predict(StepKind.CONVERT, None, recipe_named("cpu-int4"))
    assert cost.memory_bytes > 0
    assert cost.seconds is None


def test_publishing_needs_no_memory_of_its_own() -> None:
    assert predict(StepKind.PUBLISH, MODEL, recipe_named("cpu-int4")).memory_bytes == 0


def test_the_first_attempt_sets_the_ratio_and_later_ones_move_it() -> None:
    first = Ratio().after(memory=2.0, seconds=4.0)
    assert (first.memory, first.seconds, first.attempts) == (2.0, 4.0, 1)
    second = first.after(memory=1.0, seconds=4.0)
    assert 1.0 < second.memory < 2.0
    assert second.attempts == 2


def test_one_attempt_makes_the_prediction_for_the_same_model_exact() -> None:
    recipe = recipe_named("cpu-int4")
    cost = predict(StepKind.CONVERT, MODEL, recipe)
    assert cost.seconds is not None
    ratio = Ratio().after(3e9 / cost.memory_bytes, 40 / cost.seconds)
    again = corrected(cost, ratio)
    assert again.memory_bytes == pytest.approx(3e9)
    assert again.seconds == pytest.approx(40)


def test_every_step_that_runs_in_a_child_has_a_cost_and_only_its_family_corrects_it() -> None:
    recipe = BUILT_IN["cpu-int4"]
    learned = {(StepKind.CONVERT, cost_family("qwen2", recipe)): Ratio(2.0, 1.0, 1)}
    plain, with_ratio = (costs_of_job(MODEL, family, recipe, learned) for family in ("llama", "qwen2"))
    assert set(plain) == set(plan(JobKind.CONVERT, recipe)) - {StepKind.PUBLISH}
    assert with_ratio[StepKind.CONVERT].memory_bytes == 2 * plain[StepKind.CONVERT].memory_bytes
    assert with_ratio[StepKind.VALIDATE] == plain[StepKind.VALIDATE]


def test_an_ingest_without_sizes_gives_none() -> None:
    assert sizes_of({}) is None


def test_a_model_that_was_made_elsewhere_is_predicted_by_its_size() -> None:
    recipe = recipe_named("cpu-fp32")
    found = {"kind": "model", "family": "qwen2", "sizes": None, "size_bytes": 1_000_000_000}
    cost = expected(StepKind.VALIDATE, found, recipe)
    assert cost.memory_bytes > 1_000_000_000 + 500_000_000
    assert cost.scratch_bytes == 1_000_000_000
    assert expected(StepKind.PACKAGE, found, recipe).scratch_bytes == 2_000_000_000
    assert cost_family_of(found, recipe) == "qwen2/imported"
    assert cost_family_of(found | {"kind": "full"}, recipe) == cost_family("qwen2", recipe)
