"""What each step of a job is predicted to take: memory, disk, seconds; corrected by what its family took before. Pure.

The sizes of a checkpoint and the recipe give a first figure; `Learned` holds the ratios of what past attempts of the
same kind of step and family used to that figure. Two cores of a present server are assumed for the seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from olivepress.conversion_cost import FP32_BYTES, MIB, Sizes, predicted_cost
from olivepress.jobs import PUBLISHING_STEPS, JobKind, StepKind
from olivepress.recipes.recipe import Recipe
from olivepress.steps import plan

# Measured on Linux x86-64 with models of 0.1 and 110 million parameters: a warm child, and what reading adds.
CHILD_BYTES = 420 * MIB
INGEST_BYTES = 450 * MIB
# The child that validates and the Foundry Local runtime in a process of its own; the artifact is open in one at a time.
VALIDATE_BYTES = 640 * MIB
VALIDATE_COPIES = 1.2
READ_BYTES_PER_S = 400e6
CONVERT_S_PER_PARAMETER = 0.035e-6
# Measured with 494 million parameters: 292 s against 22 s.
K_QUANT_TIMES = 13.0
REFERENCE_COPIES = 1.5
REFERENCE_S_PER_PARAMETER = 0.4e-6
CALIBRATE_S_PER_PARAMETER = 3.0e-6
VALIDATE_S_PER_PARAMETER = 0.05e-6
VALIDATE_S_PER_BYTE = 0.02e-6
WEIGHT_OF_NEW_ATTEMPT = 0.3
MODEL_KIND = "model"
"""What ingest calls the kind of a model that was made elsewhere."""


@dataclass(frozen=True)
class StepCost:
    """Peak memory of the child with its descendants and disk in its workspace, in bytes; seconds; None: not known."""

    memory_bytes: int
    scratch_bytes: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Ratio:
    """What attempts of one kind and family took, as a multiple of what was predicted from sizes alone."""

    memory: float = 1.0
    seconds: float = 1.0
    attempts: int = 0

    def after(self, memory: float, seconds: float) -> "Ratio":
        """With one more attempt: the first counts whole, later ones move the ratio by a part."""
        share = WEIGHT_OF_NEW_ATTEMPT if self.attempts else 1.0
        return Ratio(
            self.memory + share * (memory - self.memory),
            self.seconds + share * (seconds - self.seconds),
            self.attempts + 1,
        )


Learned = Mapping[tuple[StepKind, str], Ratio]
"""Ratios by step kind and `cost_family`."""


def cost_family(family: str, recipe: Recipe) -> str:
    """Checkpoints and recipes whose costs are alike in all but size."""
    passes = "/passes" if recipe.olive_passes else ""
    return f"{family}/{recipe.precision}/{recipe.algorithm}{passes}"


def predict(kind: StepKind, sizes: Sizes | None, recipe: Recipe) -> StepCost:
    """What a step takes, from sizes alone.

    Args:
        sizes: None before ingest has read the checkpoint.
    """
    if kind in PUBLISHING_STEPS:
        return StepCost(0, 0, 0.1)
    if sizes is None or kind is StepKind.INGEST:
        seconds = None if sizes is None else 0.5 + sizes.source_bytes / READ_BYTES_PER_S
        return StepCost(INGEST_BYTES, 0, seconds)
    conversion = predicted_cost(sizes, recipe)
    output = conversion.output_bytes
    if kind is StepKind.CONVERT:
        times = K_QUANT_TIMES if recipe.algorithm.is_k_quant else 1.0
        seconds = 0.5 + times * CONVERT_S_PER_PARAMETER * sizes.parameters
        # After the builder, source and model are open side by side for their comparison.
        memory = max(conversion.peak_ram_bytes, CHILD_BYTES + sizes.source_bytes + output)
        return StepCost(memory, conversion.scratch_bytes, seconds)
    if kind is StepKind.QUANTIZE:
        return _quantize_cost(sizes, recipe, output)
    if kind is StepKind.PACKAGE:
        return StepCost(CHILD_BYTES, 2 * output, 0.3 + 2 * output / READ_BYTES_PER_S)
    if kind is StepKind.REFERENCE:
        # torch holds the source in fp32 at most, and a merged or dequantized copy of it may lie on the disk.
        memory = CHILD_BYTES + round(REFERENCE_COPIES * FP32_BYTES * sizes.parameters)
        return StepCost(memory, FP32_BYTES * sizes.parameters, 5.0 + REFERENCE_S_PER_PARAMETER * sizes.parameters)
    memory = VALIDATE_BYTES + round(VALIDATE_COPIES * output)
    seconds = 1.5 + VALIDATE_S_PER_PARAMETER * sizes.parameters + VALIDATE_S_PER_BYTE * output
    return StepCost(memory, output, seconds)


def of_model(kind: StepKind, size_bytes: int) -> StepCost:
    """What a step takes of a model that was made elsewhere: its size is known, its source is not."""
    if kind in PUBLISHING_STEPS:
        return StepCost(0, 0, 0.1)
    copying_s = size_bytes / READ_BYTES_PER_S
    if kind is StepKind.INGEST:
        return StepCost(INGEST_BYTES, 2 * size_bytes, 0.5 + 2 * copying_s)
    if kind is StepKind.PACKAGE:
        return StepCost(CHILD_BYTES, 2 * size_bytes, 0.3 + 2 * copying_s)
    memory = VALIDATE_BYTES + round(VALIDATE_COPIES * size_bytes)
    # A parameter has half a byte at least.
    parameters = 2 * size_bytes
    seconds = 1.5 + VALIDATE_S_PER_PARAMETER * parameters + VALIDATE_S_PER_BYTE * size_bytes
    return StepCost(memory, size_bytes, seconds)


def cost_family_of(ingested: Mapping[str, Any], recipe: Recipe) -> str:
    """The cost family of what ingest found."""
    family: str = ingested["family"]
    return f"{family}/imported" if ingested.get("kind") == MODEL_KIND else cost_family(family, recipe)


def expected(kind: StepKind, ingested: Mapping[str, Any], recipe: Recipe) -> StepCost:
    """What a step takes by what ingest found (nothing yet: empty), from sizes alone."""
    if kind is StepKind.REFERENCE and ingested.get("source"):
        ingested = ingested["source"]
    if ingested.get("kind") == MODEL_KIND:
        return of_model(kind, ingested["size_bytes"])
    return predict(kind, sizes_of(ingested), recipe)


def _quantize_cost(sizes: Sizes, recipe: Recipe, output: int) -> StepCost:
    if recipe.quantizes == "checkpoint":
        # The checkpoint in fp32, what is learned from the calibration text beside it, and the quantized copy.
        weights = FP32_BYTES * sizes.parameters
        return StepCost(CHILD_BYTES + 2 * weights, weights, 2.0 + CALIBRATE_S_PER_PARAMETER * sizes.parameters)
    # The model as it came, as it becomes, and the source beside it for their comparison.
    memory = CHILD_BYTES + sizes.source_bytes + 3 * output
    return StepCost(memory, 3 * output, 1.0 + CONVERT_S_PER_PARAMETER * sizes.parameters)


def corrected(cost: StepCost, ratio: Ratio | None) -> StepCost:
    """The prediction as past attempts of the family correct it."""
    if ratio is None:
        return cost
    seconds = None if cost.seconds is None else cost.seconds * ratio.seconds
    return StepCost(round(cost.memory_bytes * ratio.memory), cost.scratch_bytes, seconds)


def costs_of_job(sizes: Sizes, family: str, recipe: Recipe, learned: Learned) -> dict[StepKind, StepCost]:
    """What each step of a job that runs in a child is going to take."""
    group = cost_family(family, recipe)
    return {
        kind: corrected(predict(kind, sizes, recipe), learned.get((kind, group)))
        for kind in plan(JobKind.CONVERT, recipe)
        if kind is not StepKind.PUBLISH
    }


def sizes_of(ingested: Mapping[str, Any]) -> Sizes | None:
    """The sizes that ingest noted; None where it is not done."""
    sizes = ingested.get("sizes")
    return Sizes(**sizes) if sizes else None
