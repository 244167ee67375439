"""How much memory and disk a conversion will take, predicted from sizes alone. Pure.

The formulas were fitted on two models (up to 6 % off) and held on a third of 732 million parameters (1.1 % off), with
onnxruntime-genai 0.18 on Linux x86-64. In floating point the comparison with the source takes more than the build: the
runtime opens either kind in fp32 (measured on 100 million parameters, whole and as an adapter: up to 4 % off).
"""

from dataclasses import asdict, dataclass

from olivepress.recipes.recipe import KEPT_IN_8_BITS, LAST_MATMUL, MIXED_LAYERS, Algorithm, Precision, Recipe

MIB = 2**20
FP32_BYTES, HALF_BYTES = 4, 2
SCALE_BYTES = 4
DEFAULT_BLOCK_SIZE = 32
BASE_MIB = {Precision.FP32: 540, Precision.FP16: 540}
K_QUANTS = (Algorithm.K_QUANT, Algorithm.K_QUANT_MIXED, Algorithm.K_QUANT_LAST)
QUANTIZED_BASE_MIB = {Algorithm.DEFAULT: 520, Algorithm.RTN: 630} | dict.fromkeys(K_QUANTS, 720)
# Copies of the largest tensor, in fp32, that are alive at once.
LARGEST_COPIES = {Algorithm.DEFAULT: 1.4, Algorithm.RTN: 4.0} | dict.fromkeys(K_QUANTS, 8.0)
FULL_PRECISION_COPIES = 2.0
# Share of the matrices' weights that `mixed_layers` keeps in 8 bits: half of the layers, there the attention's input
# and the MLP's output projections.
MIXED_LAYERS_SHARE = 0.25


@dataclass(frozen=True)
class Sizes:
    """What a conversion's cost depends on; of an adapter, all but `source_bytes` are its base's."""

    source_bytes: int
    parameters: int
    embedding_parameters: int
    largest_tensor_parameters: int
    tied_embeddings: bool
    is_adapter: bool = False
    is_quantized: bool = False
    """Whether the checkpoint, or an adapter's base, is in GPTQ or AWQ: it is widened before anything is built."""
    is_expanded: bool = False
    """Whether it is in a GGUF file: what that stands for, `source_bytes`, is written out before anything is built."""


@dataclass(frozen=True)
class Cost:
    """Predicted bytes: peak memory of the child, disk in its workspace, size of the converted model."""

    peak_ram_bytes: int
    scratch_bytes: int
    output_bytes: int

    def to_dict(self) -> dict[str, int]:
        """The cost as JSON values."""
        return asdict(self)


def predicted_cost(sizes: Sizes, recipe: Recipe) -> Cost:
    """What converting a checkpoint of these sizes by this recipe will take."""
    output = _output_bytes(sizes, recipe)
    largest = sizes.largest_tensor_parameters * FP32_BYTES
    weights = sizes.parameters * FP32_BYTES
    plain = _plain_bytes(sizes, recipe)
    if recipe.built_precision in BASE_MIB:
        peak = BASE_MIB[recipe.built_precision] * MIB + plain + max(FULL_PRECISION_COPIES * largest, weights)
    else:
        peak = QUANTIZED_BASE_MIB[recipe.algorithm] * MIB + plain + weights + output
        peak += LARGEST_COPIES[recipe.algorithm] * largest
    if recipe.olive_passes:
        # A pass reads what the builder wrote, and holds it beside what it makes of it.
        peak += output
    # The converted model twice (Olive keeps one in its cache), once more for each pass, and before it what was widened
    # from a quantized checkpoint and what an adapter was merged to.
    sources = len(recipe.olive_passes.before) + sizes.is_adapter + sizes.is_quantized
    scratch = (2 + len(recipe.olive_passes.after)) * output + sources * plain
    scratch += sizes.is_expanded * sizes.source_bytes
    return Cost(peak_ram_bytes=round(peak), scratch_bytes=scratch, output_bytes=output)


def _plain_bytes(sizes: Sizes, recipe: Recipe) -> int:
    """The checkpoint that the builder reads: the submitted one, or what was widened or merged from it."""
    if not (sizes.is_adapter or sizes.is_quantized):
        return sizes.source_bytes
    # What stays in floating point is widened and merged in fp32, the rest in the dtype of the base or of the scales.
    if not recipe.built_precision.is_quantized:
        return sizes.parameters * FP32_BYTES
    return max(sizes.source_bytes, sizes.parameters * HALF_BYTES)


def _output_bytes(sizes: Sizes, recipe: Recipe) -> int:
    if recipe.built_precision is Precision.FP32:
        return sizes.parameters * FP32_BYTES
    if recipe.built_precision is Precision.FP16:
        return sizes.parameters * HALF_BYTES
    # A tied matrix counts once among the parameters but is written twice where table and head cannot share one form.
    matrices = sizes.parameters - (0 if sizes.tied_embeddings else sizes.embedding_parameters)
    table = 0 if _shares_embeddings(sizes, recipe) else sizes.embedding_parameters * FP32_BYTES
    head = sizes.embedding_parameters * (1 - MIXED_LAYERS_SHARE) * 0.5 if _has_int8_head(recipe) else 0
    return round(matrices * _bytes_per_weight(recipe) + head + table)


def _has_int8_head(recipe: Recipe) -> bool:
    return recipe.built_precision is Precision.INT4 and LAST_MATMUL in _kept_in_8_bits(recipe)


def _kept_in_8_bits(recipe: Recipe) -> str:
    return recipe.mixed_precision or KEPT_IN_8_BITS.get(recipe.algorithm, "")


def _bytes_per_weight(recipe: Recipe) -> float:
    block_size = recipe.block_size or DEFAULT_BLOCK_SIZE
    weight = 1.0 if recipe.built_precision is Precision.INT8 else 0.5
    if MIXED_LAYERS in _kept_in_8_bits(recipe):
        weight += MIXED_LAYERS_SHARE * 0.5
    zero_point = 0.0 if recipe.is_symmetric else weight / block_size
    return weight + SCALE_BYTES / block_size + zero_point


def _shares_embeddings(sizes: Sizes, recipe: Recipe) -> bool:
    """Whether one quantized matrix serves both ends: the builder's pass ties them in every quantized precision."""
    return sizes.tied_embeddings and recipe.built_precision.is_quantized
