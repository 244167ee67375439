"""The keys of a recipe as people write it, their types and what they mean: what the published schema says."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema

from olivepress.gates import GateLimits
from olivepress.recipes.recipe import DEFAULT_ACCURACY_LEVEL, Algorithm, ExecutionProvider, FoundrySettings, Precision

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]


class KeysModel(BaseModel):
    """Unknown keys are errors: a misspelt key must not be ignored in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FoundryKeys(KeysModel):
    """Generation defaults that the published model carries."""

    max_length: Annotated[Count, Field(ge=16, le=2**24)] = FoundrySettings.max_length
    """Tokens of prompt and answer together."""
    temperature: Annotated[Number, Field(ge=0, le=2)] = FoundrySettings.temperature
    """0: always the likeliest token."""
    top_p: Annotated[Number, Field(gt=0, le=1)] = FoundrySettings.top_p
    repetition_penalty: Annotated[Number, Field(ge=0.1, le=10)] = FoundrySettings.repetition_penalty


class PassKeys(KeysModel):
    """A pass of Olive and its options, in Olive's words."""

    type: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]{0,63}$", examples=["OnnxDynamicQuantization"])]
    config: dict[str, Any] = {}


class PassesKeys(KeysModel):
    """Passes of Olive around the model builder. Where they quantize they are a step of their own."""

    before: Annotated[
        tuple[PassKeys, ...],
        Field(max_length=16, examples=[[{"type": "Gptq", "config": {"bits": 4, "group_size": 32}}]]),
    ] = ()
    """They work on the checkpoint. Calibrated ones, such as Gptq, learn from text submitted as `calibration`."""
    after: Annotated[tuple[PassKeys, ...], Field(max_length=16, examples=[[{"type": "OnnxDynamicQuantization"}]])] = ()
    """They work on the ONNX model; recipes that differ only in them share one conversion."""
    builder_precision: Precision | None = None
    """What the model builder writes, where a pass after it makes the recipe's `precision` of it."""


class RecipeKeys(KeysModel):
    """What a checkpoint is turned into. Only `precision` is needed, and `name` where it is kept under one."""

    model_config = ConfigDict(title="olivepress recipe")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", examples=["phi-small"])] | None = None
    summary: Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f]*$")] | None = None
    """When to use it, in a sentence."""
    precision: Precision
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Weights that share a scale."""
    is_symmetric: Flag = True
    """False: every block has a zero point of its own. k_quant algorithms always do so."""
    algorithm: Algorithm = Algorithm.DEFAULT
    accuracy_level: Annotated[Count, Field(ge=0, le=4)] = DEFAULT_ACCURACY_LEVEL
    """4: activations are rounded to 8 bits; 3: bf16; 2: fp16; 1: fp32; 0: onnxruntime chooses."""
    mixed_precision: Annotated[str, Field(examples=["last_matmul:int8,mixed_layers:int8"])] | None = None
    """Matrices that an int4 model keeps in 8 bits."""
    nodes_to_exclude: Annotated[tuple[str, ...], Field(max_length=1000, examples=[["/lm_head/MatMul"]])] = ()
    """Matrices that are not quantized, by their names in the ONNX graph."""
    execution_provider: ExecutionProvider = ExecutionProvider.CPU
    context_length: Annotated[Count, Field(ge=256, le=2**24)] | None = None
    """Most tokens that the published model takes; Foundry Local makes room for all of them. Null: the checkpoint's."""
    foundry: FoundryKeys = FoundryKeys()
    gates: Annotated[dict[str, Any], WithJsonSchema(TypeAdapter(GateLimits).json_schema())] = {}
    """Limits that keep a bad model from being published; null: no limit."""
    olive_passes: PassesKeys = PassesKeys()
