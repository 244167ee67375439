"""External data is cut at its tensors; whatever cannot be understood is cut in fixed pieces."""

import contextlib
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olivepress.store import DirectoryStore
from olivepress.store.cutting import (
    SMALL_TENSOR_BYTES,
    TensorSpan,
    UnreadableModel,
    cut,
    external_tensors,
    piece_sizes,
)
from olivepress.store.manifest import CHUNK_LIMIT_BYTES

MIB = 1024 * 1024


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return varint(field << 3 | 2) + varint(len(content)) + content


def tensor(offset: int, length: int, location: str = "model.onnx.data") -> bytes:
    """The fields of a TensorProto whose data is external, as the builder writes them."""
    place = {"location": location, "offset": str(offset), "length": str(length)}
    entries = [message(13, message(1, key.encode()), message(2, value.encode())) for key, value in place.items()]
    return number(1, length) + number(2, 2) + message(8, b"weight") + b"".join(entries) + number(14, 1)


def model(*tensors: bytes) -> bytes:
    """A ModelProto with these initializers, and fields around them that the walker has to pass over."""
    graph = [message(1, message(4, b"MatMul"), message(5, message(1, b"axis"), number(3, 1)))]
    graph += [message(5, fields) for fields in tensors]
    fixed_width = varint(99 << 3 | 5) + bytes(4) + varint(98 << 3 | 1) + bytes(8)
    return number(1, 10) + message(2, b"builder") + fixed_width + message(7, *graph) + message(8, number(2, 21))


def write_model(directory: Path, tensors: Sequence[bytes]) -> Path:
    """A model directory whose tensors have this content, one after the other."""
    directory.mkdir()
    spans, offset = [], 0
    for content in tensors:
        spans.append(tensor(offset, len(content)))
        offset += len(content)
    (directory / "model.onnx").write_bytes(model(*spans))
    (directory / "model.onnx.data").write_bytes(b"".join(tensors))
    return directory


def weights(seed: int, size_bytes: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def test_fine_tunes_that_differ_in_one_tensor_share_the_others(tmp_path: Path) -> None:
    # given a base and a fine-tune with another third matrix
    base = [weights(seed, 200_000) for seed in range(8)]
    tuned = [*base[:2], weights(99, 200_000), *base[3:]]
    store = DirectoryStore(tmp_path / "store")
    # when both are put
    first = store.put_directory(write_model(tmp_path / "base", base))
    before = store.stats().stored_bytes
    second = store.put_directory(write_model(tmp_path / "tuned", tuned))
    # then the second costs one tensor, and each is read back as it was
    assert first.digest != second.digest
    assert store.stats().stored_bytes - before == 200_000
    assert b"".join(store.open_file(second.digest, "model.onnx.data")) == b"".join(tuned)


def test_a_longer_tensor_at_the_front_does_not_unshare_what_follows(tmp_path: Path) -> None:
    # given a fine-tune with a larger vocabulary: every later offset is another one
    rest = [weights(seed, size) for seed, size in enumerate([3_584, 200_000, 12_000, 90_000])]
    store = DirectoryStore(tmp_path / "store")
    store.put_directory(write_model(tmp_path / "base", [weights(50, 300_000), *rest]))
    before = store.stats().stored_bytes
    # when
    store.put_directory(write_model(tmp_path / "tuned", [weights(51, 300_100), *rest]))
    # then only the first section (with the small norm that joins it) and the graph are new
    graph_bytes = (tmp_path / "tuned" / "model.onnx").stat().st_size
    assert store.stats().stored_bytes - before == 300_100 + 3_584 + graph_bytes


def test_small_tensors_join_until_they_are_worth_a_chunk() -> None:
    small, large = SMALL_TENSOR_BYTES // 4, SMALL_TENSOR_BYTES * 3
    sizes = [large, small, large, *[small] * 9, large]
    ends = [sum(sizes[:count]) for count in range(1, len(sizes) + 1)]
    spans = [TensorSpan(end - size, size) for end, size in zip(ends, sizes, strict=True)]
    assert cut(ends[-1], spans) == [large + small, large + 4 * small, 4 * small, small, large]


def test_many_tiny_tensors_do_not_become_as_many_chunks() -> None:
    spans = [TensorSpan(offset, 64) for offset in range(0, 640_000, 64)]
    assert len(cut(640_000, spans)) == 40


def test_a_tensor_larger_than_a_chunk_is_cut_from_its_own_start() -> None:
    spans = [TensorSpan(0, 100_000), TensorSpan(100_000, 40 * MIB)]
    expected = [100_000, CHUNK_LIMIT_BYTES, CHUNK_LIMIT_BYTES, 8 * MIB]
    assert cut(100_000 + 40 * MIB, spans) == expected


def test_a_file_without_tensors_is_whole_up_to_16_mib_and_then_in_fixed_pieces() -> None:
    assert cut(0, []) == []
    assert cut(CHUNK_LIMIT_BYTES, []) == [CHUNK_LIMIT_BYTES]
    assert cut(CHUNK_LIMIT_BYTES + 1, []) == [CHUNK_LIMIT_BYTES, 1]


span = st.builds(TensorSpan, st.integers(0, 10 * MIB), st.integers(0, 50 * MIB))


@settings(deadline=None)
@given(st.integers(0, 100 * MIB), st.lists(span, max_size=30))
def test_pieces_always_make_up_the_file_and_fit_into_a_chunk(size_bytes: int, spans: list[TensorSpan]) -> None:
    inside = [span for span in spans if span.offset + span.length <= size_bytes]
    sizes = cut(size_bytes, inside)
    assert sum(sizes) == size_bytes
    assert all(0 < size <= CHUNK_LIMIT_BYTES for size in sizes)
    assert cut(size_bytes, inside[::-1]) == sizes


def test_tensors_are_found_wherever_onnx_may_keep_them(tmp_path: Path) -> None:
    # given external tensors in an initializer, a sparse one, a constant node, a branch of an If, a function
    def node(*attribute: bytes) -> bytes:
        return message(1, message(4, b"Constant"), message(5, message(1, b"value"), *attribute))

    branch = message(6, message(5, tensor(400, 40)), node(message(5, tensor(500, 50))))
    graph = [
        message(5, tensor(100, 10)),
        message(15, message(1, tensor(200, 20))),
        node(message(5, tensor(300, 30))),
        node(branch),
        message(5, tensor(0, 7, location="other.data")),
        message(5, tensor(700, 70, location="./model.onnx.data")),
    ]
    function = message(25, message(7, message(5, message(5, tensor(600, 60)))))
    path = tmp_path / "model.onnx"
    path.write_bytes(message(7, *graph) + function)
    # when
    found = external_tensors(path, "model.onnx.data")
    # then those of the other file are left out
    assert sorted((span.offset, span.length) for span in found) == [(n * 100, n * 10) for n in range(1, 8)]


def test_a_tensor_whose_data_is_inline_is_no_external_one(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model(tensor(0, 8) + number(14, 0), message(9, bytes(64))))
    assert external_tensors(path, "model.onnx.data") == []


def nested_graphs(depth: int) -> bytes:
    graph = b""
    for _ in range(depth):
        graph = message(1, message(5, message(6, graph)))
    return message(7, graph)


UNREADABLE = {
    "empty": b"",
    "no protobuf": b"{'not': 'onnx'}" * 40,
    "cut off": model(tensor(0, 200_000))[:-40],
    "a number without end": b"\xff" * 64,
    "a group": model() + varint(5 << 3 | 3),
    "a number where the graph belongs": number(7, 1),
    "a negative offset": model(tensor(-5, 200_000)),
    "digits of no number": model(tensor(0, 1).replace(b"0", "²".encode()[:1])),
    "no location": model(number(14, 1) + message(13, message(1, b"offset"), message(2, b"0"))),
    "nested without end": nested_graphs(200),
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_data_beside_a_model_that_cannot_be_walked_is_cut_in_fixed_pieces(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(UnreadableModel):
        external_tensors(tmp_path / "model.onnx", "model.onnx.data")
    assert piece_sizes(tmp_path / "model.onnx.data", 20 * MIB) == [CHUNK_LIMIT_BYTES, 4 * MIB]


def test_data_shorter_than_its_tensors_is_cut_in_fixed_pieces(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model(tensor(0, 200_000), tensor(200_000, 200_000)))
    assert piece_sizes(tmp_path / "model.onnx.data", 400_000) == [200_000, 200_000]
    assert piece_sizes(tmp_path / "model.onnx.data", 399_999) == [399_999]


def test_only_data_of_a_model_beside_it_is_cut_at_tensors(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model(tensor(0, 200_000), tensor(200_000, 200_000)))
    for name in ("other.onnx.data", "model.data", "model.onnx", "model.onnx.data.bak"):
        assert piece_sizes(tmp_path / name, 400_000) == [400_000]


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_walker_raise_anything_but_unreadable(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(message(7, content))
    with contextlib.suppress(UnreadableModel):
        external_tensors(path, "any.onnx.data")
