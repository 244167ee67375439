"""The predicted cost of a conversion agrees with what was measured."""

import dataclasses

import pytest

from olivepress.conversion_cost import MIB, Sizes, predicted_cost
from olivepress.recipes.recipe import BUILT_IN, Algorithm, OlivePasses, Precision, Recipe

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
    assert cost.peak_ram_bytes == 540 * MIB + HALF_BILLION.source_bytes + 4 * HALF_BILLION.parameters


# 12 layers of width 768, 32,000 tokens: what single conversions peaked at, in MiB, the toolchain's own 457 included.
SMALL = Sizes(
    source_bytes=200_100_000,
    parameters=100_049_664,
    embedding_parameters=32_000 * 768,
    largest_tensor_parameters=32_000 * 768,
    tied_embeddings=True,
)


@pytest.mark.parametrize(
    ("recipe", "is_adapter", "peak_mib"),
    [
        ("cpu-fp32", False, 1095),
        ("cpu-fp16", False, 1157),
        ("cpu-int8", False, 1360),
        ("cpu-int4", False, 1335),
        ("cpu-fp32", True, 1334),
        ("cpu-fp16", True, 1283),
    ],
)
def test_a_small_model_takes_what_was_measured(recipe: str, is_adapter: bool, peak_mib: int) -> None:
    cost = predicted_cost(dataclasses.replace(SMALL, is_adapter=is_adapter), BUILT_IN[recipe])

    assert cost.peak_ram_bytes == pytest.approx(peak_mib * MIB, rel=0.05)


def test_what_is_merged_for_a_model_in_floating_point_is_merged_in_fp32() -> None:
    full = predicted_cost(HALF_BILLION, BUILT_IN["cpu-fp32"])
    adapter = predicted_cost(dataclasses.replace(HALF_BILLION, is_adapter=True), BUILT_IN["cpu-fp32"])

    assert adapter.scratch_bytes == full.scratch_bytes + 4 * HALF_BILLION.parameters
    assert adapter.peak_ram_bytes == full.peak_ram_bytes + 4 * HALF_BILLION.parameters - HALF_BILLION.source_bytes


@pytest.mark.parametrize(("recipe", "bytes_each"), [(INT4, 2), (BUILT_IN["cpu-fp16"], 4)], ids=["int4", "fp16"])
def test_a_quantized_checkpoint_needs_room_for_what_it_stands_for(recipe: Recipe, bytes_each: int) -> None:
    # given one in four bits
    packed = dataclasses.replace(HALF_BILLION, source_bytes=460_000_000, is_quantized=True)

    plain = predicted_cost(dataclasses.replace(packed, is_quantized=False), recipe)
    widened = predicted_cost(packed, recipe)

    assert widened.scratch_bytes - plain.scratch_bytes == bytes_each * packed.parameters
    assert widened.peak_ram_bytes - plain.peak_ram_bytes == bytes_each * packed.parameters - packed.source_bytes


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
