"""Makes GPTQ and AWQ checkpoints out of tiny ones, and the checkpoint in fp32 that each stands for."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

BITS, LEVELS, GROUP = 4, 16, 32
# AutoAWQ: the place of a word's i-th four bits is an output of this number.
AWQ_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)

Tensors = dict[str, torch.Tensor]


def quantized_checkpoint(
    source: Path, directory: Path, method: str, *, act_order: bool = False, form: str | None = None
) -> tuple[Path, Path]:
    """Quantize every matrix inside the layers of `source`; (the quantized checkpoint, what it stands for in fp32)."""
    tensors = load_file(source / "model.safetensors")
    packed: Tensors = {}
    plain: Tensors = {}
    for name, tensor in tensors.items():
        if ".layers." in name and name.endswith("proj.weight"):
            levels, zeros, scales, order = _rounded(tensor.float().T, act_order)
            packed |= _packed(name.removesuffix(".weight"), levels, zeros, scales, order, method, form)
            plain[name] = ((levels - zeros[order]).float() * scales.float()[order]).T.contiguous()
        else:
            packed[name], plain[name] = tensor.half(), tensor.half().float()
    config = json.loads((source / "config.json").read_text())
    stated: dict[str, Any] = {"quant_method": method, "bits": BITS, "group_size": GROUP}
    if method == "gptq":
        stated |= {"desc_act": act_order, "sym": False, "checkpoint_format": form or "gptq"}
    else:
        stated |= {"zero_point": True, "version": "gemm"}
    _write(source, directory / method, packed, config | {"dtype": "float16", "quantization_config": stated})
    _write(source, directory / "plain", plain, config | {"dtype": "float32"})
    return directory / method, directory / "plain"


def _rounded(weight: torch.Tensor, act_order: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels (inputs x outputs), zero points and scales (groups x outputs), and the group of each input."""
    inputs = weight.shape[0]
    order = torch.arange(inputs) // GROUP
    if act_order:
        order = order[torch.randperm(inputs, generator=torch.Generator().manual_seed(3))]
    low = torch.stack([weight[order == group].amin(0) for group in range(inputs // GROUP)])
    high = torch.stack([weight[order == group].amax(0) for group in range(inputs // GROUP)])
    scales = ((high - low) / (LEVELS - 1)).half()
    zeros = (-low / scales.float()).round().clamp(1, LEVELS - 1).int()
    levels = (weight / scales.float()[order] + zeros[order]).round().clamp(0, LEVELS - 1).int()
    return levels, zeros, scales, order


def _packed(
    matrix: str,
    levels: torch.Tensor,
    zeros: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor,
    method: str,
    form: str | None,
) -> Tensors:
    if method == "awq":
        parts = {"qweight": _words(levels, AWQ_OUTPUTS), "qzeros": _words(zeros, AWQ_OUTPUTS), "scales": scales}
    else:
        stored = zeros if form == "gptq_v2" else zeros - 1
        parts = {
            "qweight": _words(levels.T, range(8)).T,
            "qzeros": _words(stored, range(8)),
            "scales": scales,
            "g_idx": order.int(),
        }
    return {f"{matrix}.{part}": tensor.contiguous() for part, tensor in parts.items()}


def _words(numbers: torch.Tensor, order: Any) -> torch.Tensor:
    """Eight numbers of the last axis to a word of 32 bits."""
    words = torch.zeros(numbers.shape[0], numbers.shape[1] // 8, dtype=torch.int64)
    for place, number in enumerate(order):
        words |= numbers[:, number::8].long() << (BITS * place)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _write(source: Path, directory: Path, tensors: Tensors, config: dict[str, Any]) -> None:
    shutil.copytree(source, directory)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
