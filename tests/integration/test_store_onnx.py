"""The store's own reader of external-data places agrees with onnx."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from olivepress.store.cutting import TensorSpan, external_tensors, piece_sizes

pytestmark = pytest.mark.toolchain


def tensor(name: str, size: int) -> TensorProto:
    return numpy_helper.from_array(np.arange(size, dtype=np.float32), name)


def model_with_external_data(path: Path) -> None:
    """Initializers of many sizes, a constant, and branches with initializers of their own."""

    def branch(name: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, [3000])
        node = helper.make_node("Add", [f"{name}.weight", f"{name}.weight"], [f"{name}.out"])
        return helper.make_graph([node], name, [], [output], [tensor(f"{name}.weight", 3000)])

    nodes = [
        helper.make_node("Constant", [], ["constant"], value=tensor("constant", 2000)),
        helper.make_node("If", ["condition"], ["out"], then_branch=branch("then"), else_branch=branch("else")),
    ]
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    weights = [tensor(f"weight.{size}", size) for size in (10, 500, 50_000, 200_000)]
    graph = helper.make_graph(nodes, "main", [condition], [output], weights)
    onnx.save_model(
        helper.make_model(graph),
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
        size_threshold=1024,
        convert_attribute=True,
    )


def places_by_onnx(graph: onnx.GraphProto) -> list[TensorSpan]:
    tensors = list(graph.initializer)
    places = []
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t] if attribute.HasField("t") else []
            places += places_by_onnx(attribute.g) if attribute.HasField("g") else []
    for each in tensors:
        if uses_external_data(each):
            info = ExternalDataInfo(each)
            places.append(TensorSpan(info.offset or 0, info.length or 0))
    return places


def test_the_walker_finds_the_places_that_onnx_finds(tmp_path: Path) -> None:
    # given
    path = tmp_path / "model.onnx"
    model_with_external_data(path)
    expected = places_by_onnx(onnx.load(path, load_external_data=False).graph)
    # when
    found = external_tensors(path, "model.onnx.data")
    # then
    assert len(expected) >= 5
    assert sorted(found, key=lambda span: span.offset) == sorted(expected, key=lambda span: span.offset)


def test_large_tensors_begin_pieces(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model_with_external_data(path)
    data = path.with_name("model.onnx.data")
    sizes = piece_sizes(data, data.stat().st_size)
    starts = [sum(sizes[:count]) for count in range(len(sizes))]
    large = [span.offset for span in external_tensors(path, data.name) if span.length >= 200_000]
    assert len(large) == 2
    assert set(large) <= set(starts)
