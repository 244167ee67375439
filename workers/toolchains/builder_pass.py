"""The Olive pass that drives the onnxruntime-genai model builder, in place of Olive 0.13's own `ModelBuilder`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler, ONNXModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam
from olive.passes.pass_config import BasePassConfig
from onnxruntime_genai.models import builder

from workers.toolchains import half, mends

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
FP16, FP32 = "fp16", "fp32"


class ModelBuilder(Pass):
    """A Hugging Face checkpoint becomes an onnxruntime-genai model directory for the CPU.

    Olive 0.13's pass calls `create_model` alone, which onnxruntime-genai answers since 0.15 with "Hugging Face
    details not found", and it imports a module that 0.16 removed. This one calls the builder's own two steps.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "precision": PassConfigParam(type_=str, required=True, description="int4, int8, fp16 or fp32"),
            "extra_options": PassConfigParam(
                type_=dict[str, str], default_value={}, description="the builder's KEY=VALUE options"
            ),
            "builder_cache": PassConfigParam(
                type_=str, required=True, description="directory for the builder's temporary files"
            ),
        }

    @staticmethod
    def is_accelerator_agnostic(accelerator_spec: AcceleratorSpec) -> bool:
        """The graph is written for one execution provider."""
        return False

    def _run_for_config(
        self, model: HfModelHandler, config: BasePassConfig, output_model_path: str
    ) -> ONNXModelHandler:
        source, directory = model.model_name_or_path, Path(output_model_path)
        directory.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {
            "model_name": source,
            "input_path": source,
            "output_dir": str(directory),
            "precision": FP32 if config.precision == FP16 else config.precision,
            "execution_provider": "cpu",
            "cache_dir": config.builder_cache,
        }
        options = builder.parse_extra_options(
            **settings, extra_options=[f"{key}={value}" for key, value in config.extra_options.items()]
        )
        mends.mend_config(options["hf_details"]["hf_config"])
        with half.storing_half() if config.precision == FP16 else nullcontext():
            builder.create_model(**settings, **options)
        beside = sorted(str(path) for path in directory.iterdir() if not path.name.startswith(MODEL_FILE))
        return ONNXModelHandler(directory, onnx_file_name=MODEL_FILE, model_attributes={"additional_files": beside})
