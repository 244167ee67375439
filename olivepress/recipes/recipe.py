"""What a checkpoint is turned into: precision, quantization, Foundry settings, gates. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

from olivepress.errors import UnknownRecipe
from olivepress.gates import GateLimits as GateLimits


class Precision(StrEnum):
    """Number format of the weights of a converted model."""

    INT4 = "int4"
    INT8 = "int8"
    FP16 = "fp16"
    FP32 = "fp32"

    @property
    def is_quantized(self) -> bool:
        """Whether block size, symmetry and the like mean anything."""
        return self in (Precision.INT4, Precision.INT8)


class ExecutionProvider(StrEnum):
    """Where onnxruntime runs the model. A worker takes only those that it can build for and check."""

    CPU = "cpu"
    CUDA = "cuda"
    DML = "dml"
    WEBGPU = "webgpu"


class Algorithm(StrEnum):
    """How int4 and int8 weights are chosen from the source weights.

    The last two are k_quant with a mixed_precision of their own.
    """

    DEFAULT = "default"
    RTN = "rtn"
    K_QUANT = "k_quant"
    K_QUANT_MIXED = "k_quant_mixed"
    K_QUANT_LAST = "k_quant_last"

    @property
    def is_k_quant(self) -> bool:
        """Whether its weights are asymmetric whatever is asked."""
        return self.value.startswith(Algorithm.K_QUANT.value)


BLOCK_SIZES = (16, 32, 64, 128, 256)
DEFAULT_BLOCK_SIZE = 32
ACCURACY_LEVELS = range(5)
# On the CPU activations are rounded to 8 bits; measured: 1.6 times faster than less at the same quality.
DEFAULT_ACCURACY_LEVEL = 4
# Groups of matrices that an int4 model may keep in 8 bits, in the model builder's own words.
LAST_MATMUL, MIXED_LAYERS, LINEAR_ATTENTION = "last_matmul:int8", "mixed_layers:int8", "linear_attn:int8"
MIXED_PRECISION_PARTS = (LAST_MATMUL, MIXED_LAYERS, LINEAR_ATTENTION)
KEPT_IN_8_BITS = MappingProxyType(
    {Algorithm.K_QUANT_MIXED: f"{LAST_MATMUL},{MIXED_LAYERS}", Algorithm.K_QUANT_LAST: LAST_MATMUL}
)


# Passes of Olive on the checkpoint that learn from text how to round, or what to change so that rounding costs less.
CALIBRATED_PASSES = frozenset({"autoawqquantizer", "autoclip", "gptq", "gptqmodel", "gptqquantizer"})
# Those, and the ones that round a checkpoint by its weights alone.
CHECKPOINT_QUANTIZERS = CALIBRATED_PASSES | {"kquant", "rtn"}


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
class OlivePasses:
    """Passes of Olive around the model builder, each {"type": name, "config": options}, in the order in which they run.

    Those `before` work on the checkpoint, those `after` on the ONNX model; `Recipe.quantizes` says which of them are a
    step of their own. `builder_precision` is what the builder itself writes, where a pass changes it afterwards; the
    recipe's precision is that of the result.
    """

    before: tuple[dict[str, Any], ...] = ()
    after: tuple[dict[str, Any], ...] = ()
    builder_precision: Precision | None = None

    def __bool__(self) -> bool:
        return bool(self.before or self.after)


@dataclass(frozen=True)
class Recipe:
    """A named, versioned target. What changes the bytes of an artifact is in `build_options` and `quantize_options`.

    `version` 0 is that of a recipe which was written into a manifest and has no name of its own in the stack.
    `context_length` caps the tokens that the published model takes; None: as many as the checkpoint does.
    `notes` tell how the recipe came from another tool's words; they change nothing.
    """

    name: str
    version: int
    summary: str
    precision: Precision
    block_size: int | None = None
    is_symmetric: bool = True
    algorithm: Algorithm = Algorithm.DEFAULT
    mixed_precision: str | None = None
    accuracy_level: int = DEFAULT_ACCURACY_LEVEL
    execution_provider: ExecutionProvider = ExecutionProvider.CPU
    foundry: FoundrySettings = field(default_factory=FoundrySettings)
    gates: GateLimits = field(default_factory=GateLimits)
    nodes_to_exclude: tuple[str, ...] = ()
    olive_passes: OlivePasses = field(default_factory=OlivePasses)
    context_length: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def built_precision(self) -> Precision:
        """What the model builder writes; passes after it may make something else of that."""
        return self.olive_passes.builder_precision or self.precision

    @property
    def quantizes(self) -> Literal["checkpoint", "onnx"] | None:
        """What the quantize step works on; None for a recipe that has no such step.

        Passes after the builder work on what convert made, which all recipes that quantize it share. Passes before it
        are a step of their own where one of them quantizes and none comes after; else they run within convert.
        """
        if self.olive_passes.after:
            return "onnx"
        is_quantized = any(one["type"].lower() in CHECKPOINT_QUANTIZERS for one in self.olive_passes.before)
        return "checkpoint" if is_quantized else None

    @property
    def needs_calibration(self) -> bool:
        """Whether a pass learns from text of the team's."""
        return any(one["type"].lower() in CALIBRATED_PASSES for one in self.olive_passes.before)

    def quantize_options(self) -> dict[str, Any]:
        """The part of the recipe that decides the bytes of the quantize step's artifact; {} where there is no step."""
        if self.quantizes is None:
            return {}
        passes = self.olive_passes.after if self.quantizes == "onnx" else self.olive_passes.before
        return {
            "passes": list(passes),
            "precision": self.precision.value,
            "execution_provider": self.execution_provider.value,
        }

    def build_options(self) -> dict[str, Any]:
        """The part of the recipe that decides the bytes of the converted artifact (enters the step key).

        Passes that are a step of their own are not in it: what they work on, or make, is shared or comes as an input.
        """
        algorithm, mixed_precision = self.algorithm, self.mixed_precision
        if algorithm in KEPT_IN_8_BITS:
            # Two spellings of one thing share its conversion.
            algorithm, mixed_precision = Algorithm.K_QUANT, KEPT_IN_8_BITS[algorithm]
        options: dict[str, Any] = {
            "precision": self.built_precision.value,
            "block_size": self.block_size,
            "is_symmetric": self.is_symmetric,
            "algorithm": algorithm.value,
            "mixed_precision": mixed_precision,
            "accuracy_level": self.accuracy_level,
            "execution_provider": self.execution_provider.value,
        }
        # Only where they are used: what was converted before they existed keeps its key.
        if self.nodes_to_exclude:
            options["nodes_to_exclude"] = sorted(self.nodes_to_exclude)
        if self.olive_passes.before and self.quantizes != "checkpoint":
            options["olive_passes"] = {"before": list(self.olive_passes.before), "after": []}
        return options

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values; `from_dict` reads it back."""
        values = asdict(self)
        passes = values["olive_passes"]
        return values | {
            "nodes_to_exclude": list(self.nodes_to_exclude),
            "olive_passes": passes | {"before": list(passes["before"]), "after": list(passes["after"])},
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """A recipe as `to_dict` wrote it, also one of an earlier release, which had fewer keys."""
        fields = dict(values)
        return cls(
            **fields
            | {
                "precision": Precision(fields["precision"]),
                "algorithm": Algorithm(fields["algorithm"]),
                "execution_provider": ExecutionProvider(fields["execution_provider"]),
                "foundry": FoundrySettings(**fields["foundry"]),
                "gates": GateLimits(**fields["gates"]),
                "nodes_to_exclude": tuple(fields.get("nodes_to_exclude", ())),
                "olive_passes": _passes_from(fields.get("olive_passes", {})),
                "notes": tuple(fields.get("notes", ())),
            }
        )


def _passes_from(values: dict[str, Any]) -> OlivePasses:
    precision = values.get("builder_precision")
    return OlivePasses(
        before=tuple(values.get("before", ())),
        after=tuple(values.get("after", ())),
        builder_precision=Precision(precision) if precision else None,
    )


BUILT_IN = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="cpu-int4",
            version=1,
            summary="Start here: the best int4 for its size; block size 32, the sensitive matrices in int8.",
            precision=Precision.INT4,
            block_size=32,
            is_symmetric=False,
            mixed_precision=f"{LAST_MATMUL},{MIXED_LAYERS}",
        ),
        Recipe(
            name="cpu-int4-small",
            version=1,
            summary="Where every megabyte counts: a fifth smaller than cpu-int4, at several times its loss.",
            precision=Precision.INT4,
            block_size=32,
        ),
        Recipe(
            name="cpu-int4-128",
            version=1,
            summary="Where models must match Olive's documented int4: block size 128, asymmetric.",
            precision=Precision.INT4,
            block_size=128,
            is_symmetric=False,
        ),
        Recipe(
            name="cpu-int8",
            version=1,
            summary="Where int4 loses too much: about twice its size, next to no loss.",
            precision=Precision.INT8,
            block_size=32,
        ),
        Recipe(
            name="cpu-fp16",
            version=1,
            summary="Where answers must stay as they were trained: half the size of fp32, no loss to speak of.",
            precision=Precision.FP16,
        ),
        Recipe(
            name="cpu-fp32",
            version=1,
            summary="The reference to compare others with: every weight as it was, four bytes each.",
            precision=Precision.FP32,
        ),
    )
}
DEFAULT_RECIPE = "cpu-int4"


@dataclass(frozen=True)
class RecipeReference:
    """A recipe as people name it: NAME, its newest version, or NAME@VERSION."""

    name: str
    version: int | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


def parse_reference(text: str) -> RecipeReference:
    """NAME or NAME@VERSION.

    Raises:
        UnknownRecipe: what stands behind the @ is no version.
    """
    name, has_version, version = text.partition("@")
    if not has_version:
        return RecipeReference(name)
    if not (version.isascii() and version.isdigit() and len(version) <= 9 and int(version) > 0):
        raise UnknownRecipe(f"'{text}' names no version of a recipe; write {name}, or {name}@1 for its first version")
    return RecipeReference(name, int(version))


def recipe_named(text: str, own: Mapping[str, Sequence[Recipe]] = MappingProxyType({})) -> Recipe:
    """The recipe of this NAME or NAME@VERSION.

    Args:
        own: a team's own recipes: by name the versions that can be used.

    Raises:
        UnknownRecipe: no recipe has this name, or it has no such version.
    """
    wanted = parse_reference(text)
    built_in = BUILT_IN.get(wanted.name)
    versions = (built_in,) if built_in else own.get(wanted.name, ())
    if not versions:
        names = sorted({*BUILT_IN, *own})
        near = get_close_matches(wanted.name, names, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UnknownRecipe(f"there is no recipe '{wanted.name}'; {hint}choose one of: {', '.join(names)}")
    if wanted.version is None:
        return max(versions, key=lambda recipe: recipe.version)
    for recipe in versions:
        if recipe.version == wanted.version:
            return recipe
    known = ", ".join(f"{recipe.name}@{recipe.version}" for recipe in sorted(versions, key=lambda one: one.version))
    raise UnknownRecipe(f"there is no {wanted}; there is: {known}")
