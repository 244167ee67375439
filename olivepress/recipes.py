"""What a checkpoint is turned into: precision, quantization, Foundry settings, gates. Pure."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from olivepress.errors import UnknownRecipe


class Precision(StrEnum):
    """Number format of the weights of a converted model."""

    INT4 = "int4"
    INT8 = "int8"
    FP16 = "fp16"
    FP32 = "fp32"


class ExecutionProvider(StrEnum):
    """Where onnxruntime runs the model."""

    CPU = "cpu"


class Algorithm(StrEnum):
    """How int4 and int8 weights are chosen from the source weights."""

    DEFAULT = "default"
    RTN = "rtn"


@dataclass(frozen=True)
class FoundrySettings:
    """Generation defaults that a published model carries.

    They go into genai_config.json (`search`, `context_length`) and, in agreement with it, into
    `ModelConfig` of inference_model.json. `max_length` counts tokens, prompt and answer together.
    """

    max_length: int = 2048
    temperature: float = 0.7
    top_p: float = 0.9
    repetition_penalty: float = 1.1


@dataclass(frozen=True)
class GateLimits:
    """Limits that a validated artifact must keep; None means that no limit was set.

    `min_prompts_passed` is the share (0 to 1) of the domain prompts with an expectation that must be met;
    it binds only where the job has such prompts.
    """

    certificate_required: bool = True
    min_prompts_passed: float | None = 0.8


@dataclass(frozen=True)
class Recipe:
    """A named, versioned target. Everything that changes the bytes of an artifact is in `build_options`."""

    name: str
    version: int
    summary: str
    precision: Precision
    block_size: int | None = None
    is_symmetric: bool = True
    algorithm: Algorithm = Algorithm.DEFAULT
    mixed_precision: str | None = None
    accuracy_level: int = 4
    execution_provider: ExecutionProvider = ExecutionProvider.CPU
    foundry: FoundrySettings = field(default_factory=FoundrySettings)
    gates: GateLimits = field(default_factory=GateLimits)

    def build_options(self) -> dict[str, Any]:
        """The part of the recipe that decides the bytes of the converted artifact (enters the step key)."""
        return {
            "precision": self.precision.value,
            "block_size": self.block_size,
            "is_symmetric": self.is_symmetric,
            "algorithm": self.algorithm.value,
            "mixed_precision": self.mixed_precision,
            "accuracy_level": self.accuracy_level,
            "execution_provider": self.execution_provider.value,
        }

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """A recipe as `to_dict` wrote it."""
        fields = dict(values)
        return cls(
            **fields
            | {
                "precision": Precision(fields["precision"]),
                "algorithm": Algorithm(fields["algorithm"]),
                "execution_provider": ExecutionProvider(fields["execution_provider"]),
                "foundry": FoundrySettings(**fields["foundry"]),
                "gates": GateLimits(**fields["gates"]),
            }
        )


BUILT_IN = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="cpu-int4",
            version=1,
            summary="Start here: the smallest and fastest; int4 weights, block size 32.",
            precision=Precision.INT4,
            block_size=32,
            is_symmetric=False,
            mixed_precision="last_matmul:int8,mixed_layers:int8",
        ),
        Recipe(
            name="cpu-int8",
            version=1,
            summary="Where int4 loses too much: about twice its size, next to no loss.",
            precision=Precision.INT8,
            block_size=32,
        ),
        Recipe(
            name="cpu-fp32",
            version=1,
            summary="The reference: every weight as it was, four bytes each.",
            precision=Precision.FP32,
        ),
    )
}
DEFAULT_RECIPE = "cpu-int4"


def recipe_named(name: str) -> Recipe:
    """The built-in recipe of this name.

    Raises:
        UnknownRecipe: no recipe has this name.
    """
    try:
        return BUILT_IN[name]
    except KeyError:
        known = ", ".join(sorted(BUILT_IN))
        raise UnknownRecipe(f"there is no recipe '{name}'; choose one of: {known}") from None
