"""Checkpoints that were quantized before they came here (GPTQ, AWQ): which are read, and what their tensors stand for.

Each quantized matrix is stored as `NAME.qweight`, `NAME.qzeros`, `NAME.scales` and, with GPTQ, `NAME.g_idx`; it stands
for one `NAME.weight` in floating point. Pure, from headers alone; `workers/toolchains/dequantized.py` computes it.

Source of the formats: GPTQModel, `nn_modules/qlinear/torch.py`; AutoAWQ, `modules/linear/gemm.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from olivepress.checkpoints.safetensors_header import Tensor
from olivepress.errors import BadCheckpoint

PACKED, ZEROS, SCALES, GROUPS = ".qweight", ".qzeros", ".scales", ".g_idx"
WORD_BITS = 32
WORD = "I32"
SUBMIT_PLAIN = "submit the checkpoint in bfloat16, float16 or float32"
GPTQ_BITS, AWQ_BITS = (2, 4, 8), (4,)
GPTQ_FORMATS, AWQ_FORMATS = ("gptq", "gptq_v2"), ("gemm",)


class Method(StrEnum):
    """How the weights were quantized."""

    GPTQ = "gptq"
    AWQ = "awq"


@dataclass(frozen=True)
class Quantization:
    """How every quantized matrix of a checkpoint is stored."""

    method: Method
    bits: int
    zero_is_less_one: bool
    """GPTQ's first format stores each zero point less one."""

    @property
    def in_word(self) -> int:
        """Numbers in one 32-bit word."""
        return WORD_BITS // self.bits


def read_quantization(directory: Path, config: dict[str, Any]) -> Quantization | None:
    """What config.json says of a checkpoint's quantization; None where there is none.

    Raises:
        BadCheckpoint: it is in a form that is not read here.
    """
    stated = config.get("quantization_config")
    if not stated:
        return None
    values = stated if isinstance(stated, dict) else {}
    method = values.get("quant_method")
    if method not in (Method.GPTQ, Method.AWQ):
        raise BadCheckpoint(
            f"{directory} is quantized already ({method or 'in a format that config.json does not name'}); read here "
            f"are {Method.GPTQ} and {Method.AWQ} only; {SUBMIT_PLAIN}"
        )
    is_gptq = method == Method.GPTQ
    bits = values.get("bits", values.get("w_bit"))
    form = (
        values.get("checkpoint_format") or values.get("format") or "gptq" if is_gptq else values.get("version", "gemm")
    )
    if bits not in (GPTQ_BITS if is_gptq else AWQ_BITS):
        raise _not_read(directory, method, f"with {bits} bits a weight", GPTQ_BITS if is_gptq else AWQ_BITS)
    if str(form).lower() not in (GPTQ_FORMATS if is_gptq else AWQ_FORMATS):
        raise _not_read(directory, method, f"in the format '{form}'", GPTQ_FORMATS if is_gptq else AWQ_FORMATS)
    return Quantization(Method(method), int(bits or 0), zero_is_less_one=is_gptq and str(form).lower() == "gptq")


def _not_read(directory: Path, method: str, how: str, known: Iterable[object]) -> BadCheckpoint:
    choices = ", ".join(map(str, known))
    return BadCheckpoint(f"{directory} is quantized already ({method}) {how}; read here: {choices}; {SUBMIT_PLAIN}")


def plain_tensors(tensors: Iterable[Tensor], quantization: Quantization, place: Path) -> tuple[Tensor, ...]:
    """The tensors that a checkpoint would have in floating point: those that are quantized by what they stand for.

    Raises:
        BadCheckpoint: a part of a quantized matrix is missing, or its size does not fit the others.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    plain = []
    for name, tensor in by_name.items():
        if name.endswith(PACKED):
            plain.append(_plain(name.removesuffix(PACKED), by_name, quantization, place))
        elif not _is_part(name, by_name):
            plain.append(tensor)
    return tuple(plain)


def _is_part(name: str, by_name: dict[str, Tensor]) -> bool:
    suffix = next((suffix for suffix in (ZEROS, SCALES, GROUPS) if name.endswith(suffix)), None)
    return suffix is not None and name.removesuffix(suffix) + PACKED in by_name


def _plain(matrix: str, by_name: dict[str, Tensor], quantization: Quantization, place: Path) -> Tensor:
    packed = by_name[matrix + PACKED]
    for suffix in (ZEROS, SCALES):
        if matrix + suffix not in by_name:
            raise BadCheckpoint(f"{place} has '{packed.name}' and no '{matrix}{suffix}'; save or copy the model again")
    scales, zeros = by_name[matrix + SCALES], by_name[matrix + ZEROS]
    fits = all(len(part.shape) == 2 for part in (packed, scales, zeros)) and packed.dtype == zeros.dtype == WORD
    if fits:
        rows, columns = packed.shape
        in_word = quantization.in_word
        is_gptq = quantization.method is Method.GPTQ
        inputs, outputs = (rows * in_word, columns) if is_gptq else (rows, columns * in_word)
        groups = scales.shape[0]
        fits = scales.shape[1] == outputs and zeros.shape == (groups, outputs // in_word) and 0 < groups <= inputs
        order = by_name.get(matrix + GROUPS)
        fits = fits and (inputs % groups == 0 if order is None else order.shape == (inputs,) and order.dtype == WORD)
    if not fits:
        raise BadCheckpoint(
            f"the parts of '{matrix}' in {place} do not fit each other, or not the {quantization.bits} bits that "
            "config.json states; put the config.json and the weights together that belong together"
        )
    return Tensor(f"{matrix}.weight", scales.dtype, (outputs, inputs), packed.start, packed.end)
