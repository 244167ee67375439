"""How an ONNX graph is wired: what its attention, norms and activations are set to, and which weights lead nowhere."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx

from workers.toolchains.graph_facts import ATTENTION, SMALLEST_TENSOR, load_graph
from workers.toolchains.stored_weights import layer_of

LOGITS = "logits"
NORMS = frozenset(
    {
        "LayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)
ACTIVATIONS = frozenset(
    {"BiasGelu", "Erf", "FastGelu", "Gelu", "MoE", "QMoE", "QuickGelu", "Relu", "Sigmoid", "Swish", "Tanh"}
)
PASSED_THROUGH = frozenset({"Cast", "Identity", "Mul"})
"""What may stand between the cap of the logits and the logits."""


@dataclass(frozen=True)
class GraphStructure:
    """Of one ONNX file; only what the logits depend on counts.

    `windows` has, of each attention node with one, the tokens that it looks back; `softcaps` what attention nodes cap
    their scores at, 0 for nothing; `logit_cap` what the logits are capped at, or None. `unreached` are weights that the
    logits do not depend on, and `out_of_order` numbers of layers that are computed before an earlier one.
    """

    windows: tuple[int, ...]
    softcaps: frozenset[float]
    epsilons: frozenset[float]
    activations: frozenset[str]
    logit_cap: float | None
    unreached: tuple[str, ...]
    out_of_order: tuple[int, ...]


def read_structure(model_file: Path) -> GraphStructure:
    """Read the graph; its weights are not touched.

    Raises:
        BadArtifact: the file is no ONNX model.
    """
    graph = load_graph(model_file).graph
    makers = {output: node for node in graph.node for output in node.output if output}
    reached = _reached(makers)
    nodes = [node for node in graph.node if reached & set(node.output)]
    numbers = [{each.name: each for each in node.attribute} for node in nodes if node.op_type in ATTENTION]
    windows = [each["local_window_size"].i for each in numbers if "local_window_size" in each]
    return GraphStructure(
        windows=tuple(sorted(window for window in windows if window > 0)),
        softcaps=frozenset(each["softcap"].f for each in numbers if "softcap" in each),
        epsilons=frozenset(
            each.f for node in nodes if node.op_type in NORMS for each in node.attribute if each.name == "epsilon"
        ),
        activations=frozenset(node.op_type for node in nodes) & ACTIVATIONS,
        logit_cap=_logit_cap(graph, makers),
        unreached=tuple(sorted(tensor.name for tensor in _weights(graph) if tensor.name not in reached)),
        out_of_order=tuple(_out_of_order(nodes)),
    )


def _weights(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    return (tensor for tensor in graph.initializer if np.prod(tensor.dims, dtype=np.int64) >= SMALLEST_TENSOR)


def _reached(makers: Mapping[str, onnx.NodeProto]) -> set[str]:
    """Every name that the logits depend on."""
    reached: set[str] = set()
    waiting = [LOGITS]
    while waiting:
        name = waiting.pop()
        if name and name not in reached:
            reached.add(name)
            waiting += makers[name].input if name in makers else ()
    return reached


def _out_of_order(nodes: list[onnx.NodeProto]) -> Iterator[int]:
    """Layers whose longest way from the inputs is shorter than that of the layer before them."""
    depths: dict[str, int] = {}
    of_layers: dict[int, int] = {}
    for node in nodes:  # ONNX lists a node after those that it depends on.
        depth = 1 + max((depths.get(name, 0) for name in node.input if name), default=0)
        depths |= dict.fromkeys(node.output, depth)
        layer = layer_of(node.name.replace("/", "."))
        if layer is not None:
            of_layers[layer] = max(of_layers.get(layer, 0), depth)
    order = sorted(of_layers)
    yield from (later for layer, later in pairwise(order) if of_layers[later] <= of_layers[layer])


def _logit_cap(graph: onnx.GraphProto, makers: Mapping[str, onnx.NodeProto]) -> float | None:
    """The number that a hyperbolic tangent at the very end is multiplied by."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    name, cap = LOGITS, 1.0
    while (node := makers.get(name)) is not None and node.op_type in PASSED_THROUGH:
        name = node.input[0]
        if node.op_type == "Mul":
            factor = _number(node.input[1], constants, makers)
            if factor is None:
                return None
            cap *= factor
    return cap if node is not None and node.op_type == "Tanh" else None


def _number(name: str, constants: Mapping[str, onnx.TensorProto], makers: Mapping[str, onnx.NodeProto]) -> float | None:
    tensor = constants.get(name)
    if tensor is None and name in makers and makers[name].op_type == "Constant":
        tensor = next((each.t for each in makers[name].attribute if each.name == "value"), None)
    if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    numbers = onnx.numpy_helper.to_array(tensor).reshape(-1)
    return float(numbers[0]) if len(numbers) == 1 else None
