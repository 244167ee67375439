"""What a GGUF file's header says is read without torch, and a forged one is told as what it is."""

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from olivepress.checkpoints.gguf_header import GgufFile, read_gguf_header
from olivepress.checkpoints.gguf_rope import shortest
from olivepress.checkpoints.reading import inspect
from olivepress.errors import BadCheckpoint
from tests.gguf_bytes import HEADER_BYTES, KEYS, SHAPES, SOUND, WEIGHTS, gguf_bytes


def written(directory: Path, content: bytes) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "model.gguf").write_bytes(content)
    return directory


def test_its_facts_are_told(tmp_path: Path) -> None:
    facts = inspect(written(tmp_path / "m", SOUND))

    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["parameters"] == WEIGHTS
    assert (facts["dtype"], facts["context_length"], facts["vocabulary_size"]) == ("F32", 128, 9)
    assert facts["tied_embeddings"]
    assert facts["problems"] == []


def test_they_are_told_without_a_heavy_library(tmp_path: Path) -> None:
    directory = written(tmp_path / "m", SOUND)
    asked = (
        "import sys; from pathlib import Path; from olivepress.checkpoints.reading import inspect; "
        f"inspect(Path({str(directory)!r})); "
        "print(sorted({'torch', 'numpy', 'gguf', 'transformers'} & set(sys.modules)))"
    )

    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=60)

    assert said.stdout == "[]\n"


def test_a_version_before_is_read(tmp_path: Path) -> None:
    content = SOUND[:4] + struct.pack("<I", 2) + SOUND[8:]

    assert len(read_gguf_header(written(tmp_path / "m", content) / "model.gguf").tensors) == len(SHAPES)


@pytest.mark.parametrize("length", [*range(0, 200, 7), HEADER_BYTES - 1, len(SOUND) - 1])
def test_one_that_is_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(BadCheckpoint, match=r"model\.gguf"):
        inspect(written(tmp_path / "m", SOUND[:length]))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"general.architecture": 7}, "does not say of which architecture"),
        ({"general.alignment": 12}, "'general.alignment' is 12, no multiple of 8"),
        ({"split.count": 3}, "is one part of a model; join its parts"),
        ({"llama.attention.head_count": ["4", "4"]}, "'attention.head_count' differs by layer; submit"),
        ({"llama.attention.head_count_kv": 0}, "'attention.head_count_kv' is 0; submit"),
        ({"llama.rope.freq_base": -1.0}, "'rope.freq_base' is -1.0; submit"),
        ({"llama.rope.freq_base": float("nan")}, "'rope.freq_base' is 'nan', no number; submit"),
        ({"llama.attention.key_length": 1}, "its heads .* are of no size"),
        ({"llama.rope.scaling.type": "ntk"}, r"in a way that is not read \('ntk'\); put the config.json"),
        ({"llama.expert_count": 8}, "states 'expert_count' of its llama, which is not understood; put the config.json"),
    ],
)
def test_a_key_that_cannot_be_is_told(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    with pytest.raises(BadCheckpoint, match=says):
        inspect(written(tmp_path / "m", gguf_bytes(KEYS | changed, SHAPES)))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"tokenizer.ggml.merges": ["a x"]}, "the merge 'a x' is not of its tokens; put the tokenizer"),
        ({"tokenizer.ggml.tokens": ["a"] * 9}, "one of its tokens stands twice; put the tokenizer"),
        ({"tokenizer.ggml.tokens": list("0123456789")}, "has 10 tokens, and not as many types or rows"),
        ({"tokenizer.ggml.model": "t5"}, r"of the kind 't5' \(cut as 'qwen2'\).*; put the tokenizer"),
        ({"tokenizer.chat_template": ""}, "has no chat template, so nobody can chat"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_a_problem_and_the_rest_is_told(
    tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    facts = inspect(written(tmp_path / "m", gguf_bytes(KEYS | changed, SHAPES)))

    with pytest.raises(BadCheckpoint, match=says):
        raise BadCheckpoint(facts["problems"][0])
    assert facts["architecture"] == "LlamaForCausalLM"


@pytest.mark.parametrize("name", ["blk.0.ssm_a.weight", "blk.00.attn_q.weight", "blk.0.attn_q.scale", "cls.weight"])
def test_a_tensor_without_a_place_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadCheckpoint, match=f"holds '{name}', which a 'llama' has no place for"):
        inspect(written(tmp_path / "m", gguf_bytes(KEYS, SHAPES | {name: (32, 32)})))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.integers(0, HEADER_BYTES - 1), st.integers(0, 255), min_size=1, max_size=4))
def test_whatever_its_header_becomes_it_is_read_or_refused(tmp_path: Path, changes: dict[int, int]) -> None:
    content = bytearray(SOUND)
    for place, value in changes.items():
        content[place] = value
    directory = written(tmp_path / "m", bytes(content))

    try:
        facts = inspect(directory)
    except BadCheckpoint as refusal:
        assert str(directory) in str(refusal)
    else:
        assert facts["size_bytes"] > 0


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_the_shortest_number_is_the_same_in_32_bits(value: float) -> None:
    assert struct.pack("<f", shortest(value)) == struct.pack("<f", value)


def test_a_number_of_few_digits_is_the_one_that_was_written() -> None:
    stored = [struct.unpack("<f", struct.pack("<f", value))[0] for value in (1e-6, 1.2, 10000.0, 0.7)]

    assert [shortest(value) for value in stored] == [1e-6, 1.2, 10000.0, 0.7]


def test_a_long_list_of_factors_is_not_read(tmp_path: Path) -> None:
    directory = written(tmp_path / "m", gguf_bytes(KEYS, SHAPES | {"rope_freqs.weight": (8192,)}))
    file: GgufFile = read_gguf_header(directory / "model.gguf")

    with pytest.raises(BadCheckpoint, match=r"'rope_freqs\.weight' is no short list of F32"):
        file.floats("rope_freqs.weight")
