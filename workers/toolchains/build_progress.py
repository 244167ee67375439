"""Tells how far the model builder is; it has no way to ask, so its quantizers and its writer are listened to."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantizer
from onnxruntime.quantization.neural_compressor import weight_only
from onnxruntime_genai.models import builder

from workers.toolchains.replaced import replaced

# Where the phases of a build lie, as shares of its time (measured on 494 M parameters).
QUANTIZED_FROM, WRITTEN_FROM = 0.5, 0.9


@contextmanager
def reporting(report: Callable[[float], None]) -> Iterator[None]:
    """Within this block a build calls `report` with shares between 0 and 1."""
    quantize_matmul = DefaultWeightOnlyQuantizer.quantize_matmul
    matrices = done = 0

    def quantized(done: int, of: int) -> None:
        report(QUANTIZED_FROM + (WRITTEN_FROM - QUANTIZED_FROM) * min(done / max(of, 1), 1.0))

    def counted(quantizer: DefaultWeightOnlyQuantizer, node: Any, graphs: Any) -> Any:
        nonlocal matrices, done
        # Counted at the first call: a second pass over the same graph finds fewer left.
        matrices = matrices or sum(node.op_type == "MatMul" for node in graphs[0].node)
        done += 1
        quantized(done, matrices)
        return quantize_matmul(quantizer, node, graphs)

    with replaced(
        (DefaultWeightOnlyQuantizer, "quantize_matmul", counted),
        (weight_only, "simple_progress_bar", lambda total, current: quantized(current, total)),
        (sys.modules[builder.Model.__module__], "tqdm", lambda: _Writing(report)),
    ):
        yield


class _Writing:
    """Stands in for the `tqdm` bar over the tensors that are written, which would fill the log."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self.report = report
        self.total, self.written = 1, 0

    def __enter__(self) -> "_Writing":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def set_description(self, _: str) -> None:
        return None

    def update(self) -> None:
        self.written += 1
        self.report(WRITTEN_FROM + (1 - WRITTEN_FROM) * min(self.written / self.total, 1.0))
