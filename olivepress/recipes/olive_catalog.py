"""The passes of Olive 0.13 as far as data alone tells what they can be used for: kept beside the library that has them.

The worker asks the installed Olive again, which also knows every pass's options. A test holds this list against it.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from olivepress.recipes.recipe import CHECKPOINT_QUANTIZERS, Precision

ON_CHECKPOINTS = (
    "AutoAWQQuantizer", "AutoClip", "CaptureLayerAnnotations", "CaptureSplitInfo", "DoRA", "Gptq", "GptqModel",
    "GptqQuantizer", "KQuant", "LoHa", "LoKr", "LoRA", "LoftQ", "MergeAdapterWeights", "QLoRA", "QuaRot", "Rtn",
    "SelectiveMixedPrecision", "SliceGPT", "SparseGPT", "SpinQuant",
)  # fmt: skip
ON_ONNX = (
    "AddOliveMetadata", "AimetQuantization", "ComposeOnnxModels", "DynamicToFixedShape", "ExtractAdapters",
    "GraphSurgeries", "IncDynamicQuantization", "IncQuantization", "IncStaticQuantization", "InputNCHWtoNHWC",
    "MatMulNBitsToQDQ", "MobiusBuilder", "NVModelOptGraphSurgery", "OnnxBlockWiseRtnQuantization",
    "OnnxBnb4Quantization", "OnnxConversion", "OnnxDiscrepancyCheck", "OnnxDynamicQuantization",
    "OnnxFloatToFloat16", "OnnxHqqQuantization", "OnnxIODataTypeConverter", "OnnxKQuantQuantization",
    "OnnxOpVersionConversion", "OnnxPeepholeOptimizer", "OnnxQuantization", "OnnxQuantizationPreprocess",
    "OnnxScriptFusion", "OnnxStaticQuantization", "OptimumConversion", "OptimumMerging", "OrtSessionParamsTuning",
    "OrtTransformersOptimization", "SplitModel", "StaticLLM", "VitisAIAddMetaData", "VitisGenerateModelLLM",
    "VitisGenerateModelSD",
)  # fmt: skip
# For other hardware, or for models that are no language models.
ELSEWHERE = (
    "EPContextBinaryGenerator", "MixedPrecisionOverrides", "NVModelOptQuantization", "OpenVINOConversion",
    "OpenVINOEncapsulation", "OpenVINOIoUpdate", "OpenVINOOptimumConversion", "OpenVINOQuantization",
    "OpenVINOQuantizationWithAccuracy", "OpenVINOWeightCompression", "OrtMixedPrecision", "QNNContextBinaryGenerator",
    "QNNConversion", "QNNModelLibGenerator", "QNNPreprocess", "QairtEncapsulation", "QairtGenAIBuilder",
    "QairtMHA2SHA", "QairtPipelinePass", "QairtPreparation", "QuarkQuantization", "SDLoRA",
)  # fmt: skip
# They read data that the team's text is not: what goes into an ONNX graph with a cache, pairs to train on.
UNCALIBRATED = frozenset(
    {"aimetquantization", "dora", "incquantization", "incstaticquantization", "loftq", "loha", "lokr", "lora"}
    | {"onnxstaticquantization", "qlora", "slicegpt", "sparsegpt", "spinquant"}
)
DATA_OPTIONS = ("data_config", "dataset", "data_dir")
BITS = {4: Precision.INT4, 8: Precision.INT8}
_PRECISIONS = {
    "onnxdynamicquantization": Precision.INT8,
    "onnxfloattofloat16": Precision.FP16,
    "onnxhqqquantization": Precision.INT4,
    "onnxquantization": Precision.INT8,
}
_BY_BITS = frozenset({"onnxblockwisertnquantization", "onnxkquantquantization"})
# These round, and the others of that set prepare for it.
_ROUNDING = CHECKPOINT_QUANTIZERS - {"autoclip"}

_Pass = Mapping[str, Any]


def precision_left(passes: Sequence[_Pass]) -> Precision | None:
    """The precision that the last of these passes that rounds matrices gives them; None where none does."""
    found = [precision for one in passes if (precision := _precision_of(one))]
    return found[-1] if found else None


def why_unusable(one: _Pass, *, on_checkpoint: bool) -> str | None:
    """Why a pass cannot run where a recipe has it, and what to do; None where data alone does not tell."""
    name, config = str(one["type"]), one.get("config") or {}
    kind = name.lower()
    here: Sequence[str] = ON_CHECKPOINTS if on_checkpoint else ON_ONNX
    other: Sequence[str] = ON_ONNX if on_checkpoint else ON_CHECKPOINTS
    if kind in _lower(ELSEWHERE):
        return f"is '{name}', which is not for language models on the CPU; leave it out"
    if kind in _lower(other):
        where = "after, on the ONNX model" if on_checkpoint else "before, on the checkpoint"
        return f"is '{name}', which does not work here; write it under {where}"
    if kind not in _lower(here):
        near = get_close_matches(name, here, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there is: {', '.join(here)}"
        return f"is '{name}', and Olive has no such pass; {hint}"
    if given := [key for key in DATA_OPTIONS if config.get(key) is not None]:
        return (
            f"is '{name}', with data of its own ({given[0]}); no data set is fetched, and calibrated passes read the "
            "text that is submitted as 'calibration': leave it out"
        )
    if kind in UNCALIBRATED:
        return f"is '{name}', which needs data that nothing here gives it; of calibrated passes take Gptq"
    if kind == "onnxquantization" and config.get("quant_mode", "static") != "dynamic":
        return f"is '{name}', which needs data for the mode 'static', its default; write quant_mode: dynamic"
    return None


def _precision_of(one: _Pass) -> Precision | None:
    kind, config = str(one["type"]).lower(), one.get("config") or {}
    if kind in _BY_BITS | _ROUNDING:
        bits = config.get("bits", 4)
        return BITS.get(bits) if isinstance(bits, int) else None
    return _PRECISIONS.get(kind)


def _lower(names: Sequence[str]) -> frozenset[str]:
    return frozenset(name.lower() for name in names)
