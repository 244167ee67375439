"""The predicted cost of a conversion agrees with what was measured."""

import dataclasses

import pytest

from olivepress.conversion_cost import MIB, Sizes, predicted_cost
from olivepress.recipes import BUILT_IN, Algorithm, OlivePasses, Precision, Recipe

# Qwen2.5-0.5B: 494 million parameters, 988 MB in bfloat16, head tied to 136 million of embeddings.
HALF_BILLION = Sizes(
    source_bytes=988_097_824,
    parameters=494_032_768,
    embedding_parameters=151_936 * 896,
    largest_tensor_parameters=151_936 * 896,
    tied_embeddings=True,
)
INT4 = Recipe(name="x", version=1, summary="", precision=Precision.INT4, block_size=32)


def test_int4_with_the_default_algorithm_takes_what_was_measured() -> None:
    # given a run that peaked at 4.3 GB and wrote 317 MB
    cost = predicted_cost(HALF_BILLION, INT4)

    assert cost.output_bytes == pytest.approx(317e6, rel=0.06)
    assert cost.peak_ram_bytes == pytest.approx(4.3 * 2**30, rel=0.06)


def test_int8_writes_what_was_measured() -> None:
    # given 565 MB, with one int8 matrix for both ends
    assert predicted_cost(HALF_BILLION, BUILT_IN["cpu-int8"]).output_bytes == pytest.approx(565e6, rel=0.02)


def test_the_recipe_to_start_with_writes_what_was_measured() -> None:
    # given 429 MB: asymmetric int4 with the sensitive layers in int8
    assert predicted_cost(HALF_BILLION, BUILT_IN["cpu-int4"]).output_bytes == pytest.approx(429e6, rel=0.06)


def test_fp32_writes_four_bytes_for_each_parameter() -> None:
    cost = predicted_cost(HALF_BILLION, BUILT_IN["cpu-fp32"])

    assert cost.output_bytes == 4 * HALF_BILLION.parameters
    assert cost.peak_ram_bytes == 540 * MIB + HALF_BILLION.source_bytes + 8 * HALF_BILLION.largest_tensor_parameters


def test_an_adapter_needs_room_for_the_merged_model_as_well() -> None:
    full = predicted_cost(HALF_BILLION, INT4)
    adapter = predicted_cost(dataclasses.replace(HALF_BILLION, is_adapter=True), INT4)

    assert adapter.scratch_bytes == full.scratch_bytes + HALF_BILLION.source_bytes


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize("precision", list(Precision))
def test_every_precision_and_algorithm_has_a_prediction(precision: Precision, algorithm: Algorithm) -> None:
    recipe = dataclasses.replace(INT4, precision=precision, algorithm=algorithm)

    cost = predicted_cost(HALF_BILLION, recipe)

    assert 0 < cost.output_bytes < cost.peak_ram_bytes
    assert cost.scratch_bytes >= cost.output_bytes


def test_a_smaller_format_is_predicted_smaller() -> None:
    sizes = [
        predicted_cost(HALF_BILLION, dataclasses.replace(INT4, precision=precision)).output_bytes
        for precision in (Precision.INT4, Precision.FP16, Precision.FP32)
    ]

    assert sizes == sorted(sizes)


def test_k_quant_with_its_own_mixed_precision_is_as_large_as_the_same_spelt_out() -> None:
    mixed = dataclasses.replace(INT4, algorithm=Algorithm.K_QUANT_MIXED, is_symmetric=False)
    spelt_out = dataclasses.replace(
        INT4, algorithm=Algorithm.K_QUANT, is_symmetric=False, mixed_precision="last_matmul:int8,mixed_layers:int8"
    )

    assert predicted_cost(HALF_BILLION, mixed) == predicted_cost(HALF_BILLION, spelt_out)


def test_a_pass_after_the_builder_needs_room_for_what_the_builder_writes() -> None:
    passes = OlivePasses(after=({"type": "OnnxDynamicQuantization", "config": {}},), builder_precision=Precision.FP32)
    recipe = dataclasses.replace(INT4, precision=Precision.INT8, block_size=None, olive_passes=passes)

    plain, with_pass = (predicted_cost(HALF_BILLION, one) for one in (BUILT_IN["cpu-fp32"], recipe))

    assert with_pass.peak_ram_bytes > plain.peak_ram_bytes
    assert with_pass.scratch_bytes == plain.scratch_bytes + plain.output_bytes
