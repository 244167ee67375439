"""The steps of an import: alone, or held against the checkpoint that it was made from."""

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from olivepress.job_orders import ImportOrder
from olivepress.jobs import JobKind, StepKind
from olivepress.recipes.recipe import recipe_named
from olivepress.step_cost import expected
from olivepress.steps import (
    JobFacts,
    SourcePlace,
    StepResult,
    artifacts_of,
    key_of,
    plan,
    spec_of,
    told_to_ingest,
)

RECIPE = recipe_named("cpu-int4")
SIZES = {
    "source_bytes": 6_000_000,
    "parameters": 3_000_000,
    "embedding_parameters": 1_000_000,
    "largest_tensor_parameters": 1_000_000,
    "tied_embeddings": True,
}
CHECKPOINT: dict[str, Any] = {
    "checkpoint_digest": "c0ffee",
    "kind": "full",
    "family": "qwen2",
    "context_length": 512,
    "size_bytes": 6_000_000,
}
MODEL = CHECKPOINT | {
    "checkpoint_digest": "0dd",
    "kind": "model",
    "size_bytes": 2_000_000,
    "foundry": {"repetition_penalty": RECIPE.foundry.repetition_penalty},
}
CONVERTING = JobFacts(1, "/models/support", None, RECIPE, [], None)
IMPORTING = JobFacts(
    2, "/models/output", None, RECIPE, [], None, kind=JobKind.IMPORT, made_from=SourcePlace("/models/support")
)
CONVERTED = {StepKind.INGEST: StepResult(CHECKPOINT), StepKind.PACKAGE: StepResult({}, "package")}
TAKEN = {StepKind.INGEST: StepResult(MODEL | {"source": CHECKPOINT}), StepKind.PACKAGE: StepResult({}, "package")}


def test_with_its_source_an_import_has_a_reference() -> None:
    assert plan(JobKind.IMPORT, RECIPE) == (StepKind.INGEST, StepKind.PACKAGE, StepKind.VALIDATE, StepKind.PUBLISH)
    assert plan(JobKind.IMPORT, RECIPE, has_source=True) == (
        StepKind.INGEST,
        StepKind.PACKAGE,
        StepKind.REFERENCE,
        StepKind.VALIDATE,
        StepKind.PUBLISH,
    )


def test_what_a_source_says_is_shared_by_its_conversions_and_its_imports() -> None:
    converted = key_of(StepKind.REFERENCE, CONVERTING, CONVERTED, "toolchain")
    assert key_of(StepKind.REFERENCE, IMPORTING, TAKEN, "toolchain") == converted
    other = MODEL | {"source": CHECKPOINT | {"checkpoint_digest": "bad"}}
    assert key_of(StepKind.REFERENCE, IMPORTING, TAKEN | {StepKind.INGEST: StepResult(other)}, "toolchain") != converted


def test_the_reference_reads_the_source_and_not_what_was_imported() -> None:
    told = spec_of(StepKind.REFERENCE, IMPORTING, TAKEN)
    assert (told["path"], told["base"], told["ingest"]) == ("/models/support", None, CHECKPOINT)


def test_the_size_of_an_import_is_held_against_its_source() -> None:
    assert spec_of(StepKind.VALIDATE, IMPORTING, TAKEN)["source_size_bytes"] == 6_000_000
    alone = TAKEN | {StepKind.INGEST: StepResult(MODEL)}
    assert spec_of(StepKind.VALIDATE, replace(IMPORTING, made_from=None), alone)["source_size_bytes"] == 2_000_000


def test_validate_is_given_what_the_source_says() -> None:
    done = TAKEN | {StepKind.REFERENCE: StepResult({}, "reference")}
    assert artifacts_of(StepKind.VALIDATE, IMPORTING, done) == {"artifact": "package", "reference": "reference"}


def test_ingest_is_told_where_the_source_lies() -> None:
    importing = replace(IMPORTING, made_from=SourcePlace("/models/adapter", "/models/base"))
    assert told_to_ingest(importing) == {
        "is_model": True,
        "source": {"path": "/models/adapter", "base_path": "/models/base"},
    }


def test_the_reference_takes_what_its_source_takes() -> None:
    ingested = MODEL | {"source": CHECKPOINT | {"sizes": SIZES}}
    assert expected(StepKind.REFERENCE, ingested, RECIPE) == expected(
        StepKind.REFERENCE, CHECKPOINT | {"sizes": SIZES}, RECIPE
    )
    assert expected(StepKind.VALIDATE, ingested, RECIPE) == expected(StepKind.VALIDATE, MODEL, RECIPE)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"base": "/models/base"}, "'base' is the base of the source"),
        ({"gates": {"min_top1_agreement": 0.9}}, "'min_top1_agreement' compares with the source"),
        ({"source": "/models/support", "unvalidated": "no time"}, "no gates or source"),
    ],
)
def test_an_order_that_cannot_be_kept_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ImportOrder.model_validate({"path": "/models/output"} | given)


def test_a_limit_on_quality_that_is_taken_away_needs_no_source() -> None:
    assert (
        ImportOrder.model_validate({"path": "/models/output", "gates": {"max_kl_over_rounding": None}}).source is None
    )
