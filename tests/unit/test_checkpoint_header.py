"""The header of a safetensors file tells a whole file from a cut or changed one, without reading the weights."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olivepress.checkpoints.safetensors_header import read_safetensors_header
from olivepress.errors import BadCheckpoint
from tests.unit.plain_checkpoints import SHAPES, header_of, safetensors_bytes

A = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
B = {"dtype": "F16", "shape": [3], "data_offsets": [16, 22]}


def read(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return read_safetensors_header(path)


def test_names_types_shapes_and_places_are_read(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "b": B, "a": A}

    file = read(tmp_path, safetensors_bytes(header, 22))

    assert [tensor.name for tensor in file.tensors] == ["a", "b"]
    assert file.tensors[1].shape == (3,)
    assert file.tensors[1].dtype == "F16"
    assert file.tensors[0].start == file.header_bytes
    assert file.tensors[1].end == file.size_bytes
    assert file.metadata == {"format": "pt"}


def test_a_scalar_and_an_empty_tensor_are_allowed(tmp_path: Path) -> None:
    header = {
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "empty": {"dtype": "F32", "shape": [0, 7], "data_offsets": [4, 4]},
    }

    file = read(tmp_path, safetensors_bytes(header, 4))

    assert {tensor.name: tensor.element_count for tensor in file.tensors} == {"scalar": 1, "empty": 0}


@pytest.mark.parametrize("kept_bytes", [0, 7, 8, 30, -1, -20])
def test_a_file_that_was_cut_short_is_refused_wherever_it_was_cut(tmp_path: Path, kept_bytes: int) -> None:
    whole = safetensors_bytes(header_of(SHAPES), 784)

    with pytest.raises(BadCheckpoint, match=r"model\.safetensors is cut short"):
        read(tmp_path, whole[:kept_bytes])


@pytest.mark.parametrize(
    ("header", "data_bytes", "complaint"),
    [
        pytest.param({"a": A}, 17, "1 bytes follow the last tensor", id="bytes after the last tensor"),
        pytest.param(
            {"a": A, "b": B | {"data_offsets": [14, 20]}}, 20, "'b' overlaps the tensor before it", id="overlap"
        ),
        pytest.param({"a": A, "b": B | {"data_offsets": [18, 24]}}, 24, "'b' leaves a gap", id="gap"),
        pytest.param(
            {"a": A | {"shape": [2, 3]}}, 16, r"'a' has 16 bytes, its shape \(2 × 3, F32\) needs 24", id="size"
        ),
        pytest.param({"a": A | {"data_offsets": [16, 0]}}, 16, "'a' has -16 bytes", id="offsets the wrong way"),
        pytest.param({"a": A | {"dtype": "BF17"}}, 16, "unknown type 'BF17'", id="unknown type"),
        pytest.param({"a": A | {"dtype": ["F32"]}}, 16, "unknown type", id="type that is no text"),
        pytest.param({"a": A | {"shape": [2, True]}}, 16, "shape of 'a'", id="shape with a boolean"),
        pytest.param({"a": A | {"shape": [-2, -2]}}, 16, "shape of 'a'", id="negative shape"),
        pytest.param({"a": A | {"shape": [1] * 17}}, 4, "shape of 'a'", id="more dimensions than any tensor has"),
        pytest.param({"a": A | {"data_offsets": [0]}}, 16, "offsets of 'a'", id="one offset"),
        pytest.param({"a": [0, 16]}, 16, "entry of 'a'", id="entry that is no table"),
        pytest.param({"a": A, "__metadata__": {"n": 1}}, 16, "__metadata__", id="metadata that is no text"),
        pytest.param(b"[1, 2]", 0, "no JSON object", id="a list"),
        pytest.param(b'{"a": ', 0, "header is no JSON", id="half a header"),
        pytest.param(b'{"a\xff": 1}', 0, "header is no JSON", id="no UTF-8"),
        pytest.param(b'{"a":' + b"[" * 100_000, 0, "header is no JSON", id="nested too deep"),
        pytest.param(b'{"a": ' + b"9" * 10_000 + b"}", 0, "header is no JSON", id="a number of 10,000 digits"),
    ],
)
def test_a_header_that_breaks_a_rule_is_refused(
    tmp_path: Path, header: dict[str, Any] | bytes, data_bytes: int, complaint: str
) -> None:
    with pytest.raises(BadCheckpoint, match=complaint) as refusal:
        read(tmp_path, safetensors_bytes(header, data_bytes))

    assert "model.safetensors" in str(refusal.value)
    assert "copy or save it again" in str(refusal.value)


def test_a_tensor_that_stands_twice_in_the_header_is_refused(tmp_path: Path) -> None:
    text = f'{{"a": {json.dumps(A)}, "a": {json.dumps(A)}}}'.encode()

    with pytest.raises(BadCheckpoint, match="'a' stands twice"):
        read(tmp_path, safetensors_bytes(text, 16))


def test_an_absurd_header_length_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="announce a header of"):
        read(tmp_path, struct.pack("<Q", 2**62) + b"{}" * 20)


def test_a_git_lfs_pointer_is_called_by_its_name(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

    with pytest.raises(BadCheckpoint, match=r"Git LFS pointer.*git lfs pull"):
        read(tmp_path, pointer)


class TestAnyBytes:
    """Whatever stands in a file, its reader gives tensors or raises BadCheckpoint, never another exception."""

    @settings(deadline=None)
    @given(content=st.binary(max_size=300))
    def test_random_bytes(self, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
        self.check(tmp_path_factory, content)

    @settings(deadline=None)
    @given(text=st.binary(max_size=200), data_bytes=st.integers(0, 64))
    def test_random_bytes_behind_a_right_length(
        self, tmp_path_factory: pytest.TempPathFactory, text: bytes, data_bytes: int
    ) -> None:
        self.check(tmp_path_factory, safetensors_bytes(b"{" + text, data_bytes))

    @settings(deadline=None)
    @given(
        header=st.dictionaries(
            st.sampled_from(["a", "b", "__metadata__"]),
            st.fixed_dictionaries(
                {},
                optional={
                    "dtype": st.sampled_from(["F32", "F4", "U8", "?", 3, None]),
                    "shape": st.lists(st.integers(-1, 2**70) | st.none(), max_size=20) | st.integers(),
                    "data_offsets": st.lists(st.integers(-1, 2**70), max_size=3) | st.text(max_size=2),
                },
            )
            | st.none()
            | st.text(max_size=3),
        )
    )
    def test_random_tables(self, tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any]) -> None:
        self.check(tmp_path_factory, safetensors_bytes(header, 16))

    @settings(deadline=None)
    @given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
    def test_one_flipped_bit(self, tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
        content = bytearray(safetensors_bytes(header_of(SHAPES), 784))
        content[place % len(content)] ^= 1 << bit
        self.check(tmp_path_factory, bytes(content))

    def check(self, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
        path = tmp_path_factory.mktemp("any") / "model.safetensors"
        path.write_bytes(content)
        try:
            file = read_safetensors_header(path)
        except BadCheckpoint as refusal:
            assert str(path) in str(refusal)
        else:
            assert sum(tensor.size_bytes for tensor in file.tensors) + file.header_bytes == len(content)
