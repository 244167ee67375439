"""Whether a graph is wired and set as its source is: what weights do not tell, nor answers that drown in rounding.

Unit: none; each disagreement is a finding in words. Source: the attributes of onnxruntime's operators
(docs/ContribOperators.md, com.microsoft.GroupQueryAttention), the config of the source as the reference has it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from workers.toolchains.graph_structure import GraphStructure

SHOWN = 3
SAME_SHARE = 0.01
Settings = Mapping[str, Any]

SILU = (
    frozenset({"MoE", "QMoE", "QuickGelu", "Sigmoid", "Swish"}),
    frozenset({"BiasGelu", "FastGelu", "Gelu", "Relu"}),
)
GELU = (
    frozenset({"BiasGelu", "Erf", "FastGelu", "Gelu", "MoE", "QMoE", "Tanh"}),
    frozenset({"QuickGelu", "Relu", "Sigmoid", "Swish"}),
)
RELU = (
    frozenset({"MoE", "QMoE", "Relu"}),
    frozenset({"BiasGelu", "FastGelu", "Gelu", "QuickGelu", "Sigmoid", "Swish"}),
)
ACTIVATIONS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "silu": SILU,
    "swish": SILU,
    "gelu": GELU,
    "gelu_fast": GELU,
    "gelu_new": GELU,
    "gelu_pytorch_tanh": GELU,
    "relu": RELU,
    "relu2": RELU,
}
"""By the name in a config: operators of which the graph must have one, and those that belong to other activations.

The two forms of gelu are not told apart: they differ by less than fp16 does.
"""


def graph_findings(graph: GraphStructure, source: Settings | None, context_length: int) -> Iterator[str]:
    """What a graph has otherwise than its source.

    Args:
        source: its settings as workers.toolchains.source_settings gives them, or None where they are not known.
        context_length: tokens that the model takes; a window that is as long or longer is none.
    """
    if graph.unreached:
        shown = ", ".join(graph.unreached[:SHOWN])
        more = f" and {len(graph.unreached) - SHOWN} more" if len(graph.unreached) > SHOWN else ""
        yield f"the graph holds weights that its logits do not depend on: {shown}{more}"
    for layer in graph.out_of_order:
        yield f"the graph computes layer {layer} before the layer that comes before it"
    if source is None:
        return
    yield from _windows(graph, source, context_length)
    yield from _softcaps(graph, source)
    for epsilon in sorted(graph.epsilons):
        if source["norm_epsilons"] and not any(_is_same(epsilon, wanted) for wanted in source["norm_epsilons"]):
            wanted = ", ".join(f"{each:g}" for each in source["norm_epsilons"])
            yield f"a norm of the graph has the epsilon {epsilon:g} and the source's have {wanted}"
    yield from _activation(graph, source)


def _windows(graph: GraphStructure, source: Settings, context_length: int) -> Iterator[str]:
    found = [window for window in graph.windows if window < context_length]
    wanted = sorted(window for window in source["windows"] if window < context_length)
    if found != wanted:
        yield f"attention looks back {_layers(found)} in the graph and {_layers(wanted)} in the source"


def _layers(windows: list[int]) -> str:
    counts = {window: windows.count(window) for window in windows}
    return " and ".join(f"{window} tokens in {count} layers" for window, count in counts.items()) or "without limit"


def _softcaps(graph: GraphStructure, source: Settings) -> Iterator[str]:
    for cap in sorted(graph.softcaps):
        if not _is_same(cap, source["attention_softcap"]):
            yield f"the graph caps the scores of attention at {cap:g} and the source at {source['attention_softcap']:g}"
    cap = graph.logit_cap or 0.0
    if not _is_same(cap, source["logit_softcap"]):
        yield f"the graph caps its logits at {cap:g} and the source at {source['logit_softcap']:g} (0: it does not)"


def _activation(graph: GraphStructure, source: Settings) -> Iterator[str]:
    named = source["activation"]
    own, foreign = ACTIVATIONS.get(named, (frozenset(), frozenset()))
    if own and not own & graph.activations:
        yield f"the graph has no {named}, which the source has after its matrices"
    if strange := sorted(foreign & graph.activations):
        yield f"the graph has {', '.join(strange)} where the source has {named}"


def _is_same(one: float, other: float) -> bool:
    return abs(one - other) <= SAME_SHARE * max(abs(one), abs(other))
