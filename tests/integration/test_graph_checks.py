"""What a graph is wired and set to, its cache, its settings and its tokenizer are held against the source."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tests.artifacts import converted, rewrite_json, run_package
from workers.measures.cached_reading import measure_cached_reading, with_cached_reading
from workers.measures.cross_check import cross_check
from workers.measures.generation_check import generation_findings
from workers.measures.graph_check import graph_findings
from workers.measures.tokenizer_words import words_print
from workers.toolchains.graph_structure import GraphStructure, read_structure
from workers.toolchains.source_model import open_source
from workers.toolchains.source_settings import settings_of

pytestmark = pytest.mark.toolchain
CONTEXT = 1024
SETTINGS: dict[str, Any] = {
    "windows": [512],
    "attention_softcap": 50.0,
    "logit_softcap": 30.0,
    "norm_epsilons": [1e-6],
    "activation": "gelu_pytorch_tanh",
}
SOUND = GraphStructure((512,), frozenset({50.0}), frozenset({1e-6}), frozenset({"Gelu", "Tanh"}), 30.0, (), ())


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 2, which has a window in every other layer and two caps; and its checkpoint beside it."""
    return converted(tmp_path_factory.mktemp("gemma2"), "gemma2")


class TestGraph:
    def test_a_built_model_is_set_as_its_source(self, gemma2: Path) -> None:
        graph = read_structure(gemma2 / "model.onnx")
        settings = settings_of(open_source(gemma2.parent / "checkpoint")._model)

        assert settings == SETTINGS
        assert replace(graph, epsilons=SOUND.epsilons, activations=SOUND.activations) == SOUND
        assert list(graph_findings(SOUND, settings, CONTEXT)) == []

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"windows": ()}, "looks back without limit in the graph and 512 tokens in 1 layers in the source"),
            ({"windows": (513,)}, "513 tokens in 1 layers"),
            ({"windows": (512, 512)}, "512 tokens in 2 layers"),
            ({"softcaps": frozenset({0.0, 50.0})}, "scores of attention at 0 and the source at 50"),
            ({"logit_cap": None}, "caps its logits at 0 and the source at 30"),
            ({"logit_cap": 15.0}, "caps its logits at 15"),
            ({"epsilons": frozenset({1e-6, 1e-5})}, "epsilon 1e-05"),
            ({"activations": frozenset({"Sigmoid"})}, "has no gelu_pytorch_tanh"),
            ({"activations": frozenset({"Gelu", "Relu"})}, "Relu where the source has gelu"),
            ({"unreached": ("a.bias", "b", "c", "d")}, "do not depend on: a.bias, b, c and 1 more"),
            ({"out_of_order": (1,)}, "layer 1 before"),
        ],
    )
    def test_what_is_set_otherwise_is_named(self, changes: dict[str, Any], words: str) -> None:
        found = list(graph_findings(replace(SOUND, **changes), SETTINGS, CONTEXT))

        assert any(words in finding for finding in found)

    def test_a_window_that_no_text_fills_is_none(self) -> None:
        assert list(graph_findings(replace(SOUND, windows=()), SETTINGS, 512)) == []


class TestCachedReading:
    logits = np.random.default_rng(1).normal(size=(64, 20)).astype(np.float32)

    def _read(self, stepwise: Any, context_length: int = 100) -> dict[str, Any]:
        return measure_cached_reading(
            list(range(7)), context_length, lambda tokens: self.logits[: len(tokens)], stepwise, None
        )

    def test_a_model_that_reads_both_ways_alike_has_no_problem(self) -> None:
        found = self._read(lambda tokens, start: self.logits[start - 1 : len(tokens)])

        assert (found["positions"], found["problem"]) == (33, None)
        assert found["kl_divergence"] == pytest.approx(0, abs=1e-6)
        assert with_cached_reading({"status": "passed", "problem": None}, found)["status"] == "passed"

    @pytest.mark.parametrize("factor", [-1.0, float("nan")])
    def test_one_that_does_not_fails_and_is_told(self, factor: float) -> None:
        found = self._read(lambda tokens, start: self.logits[start - 1 : len(tokens)] * factor)

        judged = with_cached_reading({"status": "passed", "problem": None}, found)
        assert judged["status"] == "failed"
        assert "what the model keeps of earlier tokens is wrong" in judged["problem"]

    def test_a_context_without_room_is_not_compared(self) -> None:
        assert self._read(lambda tokens, start: self.logits, 4)["kl_divergence"] is None


class TestGeneration:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({}, None),
            ({"search__num_beams": 4}, "num_beams 4, which must be 1"),
            ({"search__min_length": 300}, "min_length 300"),
            ({"search__top_k": -3}, "top_k -3"),
            ({"search__no_repeat_ngram_size": 1}, "no_repeat_ngram_size 1"),
            ({"search__no_repeat_ngram_size": 3}, None),
            ({"search__max_length": 1}, "max_length 1, which must be at least 16"),
            ({"search__do_sample": True, "search__temperature": 0}, "at the temperature 0"),
            ({"model__decoder__session_options": {"enable_profiling": "x"}}, "enable_profiling"),
        ],
    )
    def test_a_setting_that_spoils_answers_is_named(
        self, tmp_path: Path, changes: dict[str, Any], words: str | None
    ) -> None:
        config = {"model": {"context_length": 320, "decoder": {}}, "search": {"max_length": 320, "temperature": 0.7}}
        (tmp_path / "genai_config.json").write_text(json.dumps(config))
        rewrite_json(tmp_path / "genai_config.json", **changes)

        found = list(generation_findings(tmp_path, None, []))

        assert words in found[0] if words else found == []

    def test_two_files_that_say_otherwise_of_one_setting_are_named(self, tmp_path: Path) -> None:
        config = {"model": {"context_length": 320}, "search": {"max_length": 320, "top_p": 0.9}}
        (tmp_path / "genai_config.json").write_text(json.dumps(config))
        (tmp_path / "inference_model.json").write_text(json.dumps({"ModelConfig": {"max_length": 99, "top_p": 0.9}}))

        assert ["max_length 99" in finding for finding in generation_findings(tmp_path, None, [])] == [True]


def test_what_the_logits_do_not_depend_on_is_a_note_where_there_is_no_source(gemma2: Path, tmp_path: Path) -> None:
    # Others' exporters may leave something behind that they do not use.
    run_package(gemma2, tmp_path)
    graph = onnx.load(str(tmp_path / "output" / "model.onnx"), load_external_data=False)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(64, dtype=np.float32), "left.behind"))
    (tmp_path / "output" / "model.onnx").unlink()
    (tmp_path / "output" / "model.onnx").write_bytes(graph.SerializeToString())

    found = cross_check(tmp_path / "output", None)

    assert (found["status"], found["problem"]) == ("passed", None)
    assert "the graph holds weights that its logits do not depend on: left.behind" in found["notes"]


def test_a_tokenizer_that_normalizes_otherwise_has_another_print() -> None:
    one, other = (Tokenizer(models.WordLevel({"caps": 0, "[UNK]": 1}, unk_token="[UNK]")) for _ in range(2))
    for tokenizer in (one, other):
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()

    assert words_print(one) == words_print(other)
    other.normalizer = normalizers.Lowercase()
    assert words_print(one) != words_print(other)
