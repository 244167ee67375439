"""The arithmetic of the measures, on figures that were made up."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olivepress.errors import BadArtifact, RuntimeCrashed
from workers.measures import edge_cases
from workers.measures.consistency import judge_lengths
from workers.measures.contention import Contention
from workers.measures.latency import LIMIT_CACHE_BYTES, lengths_to_try
from workers.measures.memory import cache_bytes_per_token, cache_growth
from workers.measures.quality import OtherVocabulary, measure_quality
from workers.measures.reference_file import (
    Answer,
    Reference,
    Section,
    Yardstick,
    read_reference,
    write_reference,
)
from workers.measures.soak import judge_series
from workers.measures.spread import theil_sen, timed
from workers.measures.token_comparison import KEPT_TOKENS, condensed, kl_divergences
from workers.measures.weight_print import SIGNS, MatrixPrint, WeightPrint

pytestmark = pytest.mark.toolchain


class TestSpread:
    def test_median_and_p95_are_of_the_runs_and_slow_means_low_for_speeds(self) -> None:
        times = [float(value) for value in range(1, 21)]

        assert timed(times) | {"spread": 0} == {"median": 10.5, "p95": 19.0, "spread": 0}
        assert timed(times, slow_is_low=True)["p95"] == 2.0

    def test_runs_that_differ_widen_the_spread_and_one_outlier_does_not(self) -> None:
        calm = timed([10.0] * 9 + [500.0])
        wild = timed([5.0, 20.0] * 5)

        assert calm["spread"] == 2.5
        assert wild["spread"] > 20

    def test_of_few_runs_the_range_tells_the_spread(self) -> None:
        # Two of three are alike: their deviation from the median says nothing.
        assert timed([10.0, 10.1, 30.0])["spread"] == pytest.approx(3 * 20 / 1.69, abs=0.01)
        assert timed([10.0])["spread"] == 2.5

    def test_a_busy_machine_widens_the_spread_to_what_an_idle_one_would_give(self) -> None:
        # Of 40 ms the process waited 30: alone, it would have taken 10.
        assert timed([40.0] * 12, waited=0.75)["spread"] >= 30.0
        assert timed([40.0] * 12, waited=1.0)["spread"] < float("inf")

    def test_the_speed_of_an_idle_machine_with_its_own_spread_is_within_that_of_a_busy_one(self) -> None:
        busy = timed([5000.0] * 12, slow_is_low=True, waited=0.7)

        assert busy["spread"] == pytest.approx(1.25 * 5000 / (1 - 0.7) - 5000)
        assert timed([5000.0] * 12, slow_is_low=True)["spread"] == 1250

    def test_what_a_process_waited_is_a_share_of_its_time(self) -> None:
        contention = Contention()
        sum(range(10**6))

        assert 0.0 <= contention.share() < 1.0

    def test_the_slope_is_not_bent_by_a_jump(self) -> None:
        found = theil_sen([100.0 + 2 * place + (1000 if place == 7 else 0) for place in range(20)])

        assert found["slope"] == pytest.approx(2)
        assert found["low"] <= 2 <= found["high"]

    def test_the_interval_of_noise_holds_no_slope(self) -> None:
        noise = np.random.default_rng(3).normal(size=60)

        found = theil_sen(list(noise))

        assert found["low"] < 0 < found["high"]


class TestSoak:
    def test_memory_that_settles_after_the_first_sessions_is_no_leak(self) -> None:
        assert judge_series([100, 50_000, 90_000, *[100_000] * 27])["verdict"] == "no_leak"

    def test_a_session_that_keeps_its_memory_is_suspected(self) -> None:
        found = judge_series([session * 20_000 + session % 3 * 4096 for session in range(30)])

        assert found["verdict"] == "leak_suspected"
        assert found["rss_slope_bytes"] == pytest.approx(20_000, rel=0.05)

    def test_allocator_steps_now_and_then_are_no_leak(self) -> None:
        assert judge_series([1_000_000 + (session // 20) * 65_536 for session in range(40)])["verdict"] == "no_leak"

    def test_a_few_sessions_tell_nothing(self) -> None:
        assert judge_series([1, 2, 3])["verdict"] == "too_short"


def entry(tokens: int, first_ms: float, speed: float = 100.0, **more: Any) -> dict[str, Any]:
    figures = {"first_token_ms": {"median": first_ms}, "tokens_per_s": {"median": speed}}
    return (
        {"prompt_tokens": tokens, "runs": 3, "rss_bytes": tokens * 10, "problem": None, "is_failure": False}
        | figures
        | more
    )


class TestLengths:
    def test_cost_that_grows_as_the_square_is_no_jump(self) -> None:
        found = judge_lengths([entry(128, 10), entry(512, 160), entry(1024, 640)], None)

        assert (found["status"], found["largest_jump"]) == ("passed", 1.0)

    def test_cost_that_leaps_is_told_by_how_many_times(self) -> None:
        found = judge_lengths([entry(128, 10), entry(256, 10 * 4 * 5)], None)

        assert found["largest_jump"] == 5.0

    def test_a_length_that_fails_fails_them_all(self) -> None:
        broken = entry(512, 0, runs=0, first_token_ms=None, tokens_per_s=None, problem="it broke", is_failure=True)

        found = judge_lengths([entry(128, 10), broken], None)

        assert found["status"] == "failed"
        assert found["problem"] == "a prompt of 512 tokens: it broke"

    def test_a_length_without_time_is_told_and_fails_nothing(self) -> None:
        late = entry(512, 0, runs=0, first_token_ms=None, tokens_per_s=None, problem="a run takes about 90 s")

        found = judge_lengths([entry(128, 10), late], "the limit of 9 tokens: its cache is huge")

        assert found["status"] == "passed"
        assert found["untried"] == ["512 tokens: a run takes about 90 s", "the limit of 9 tokens: its cache is huge"]

    def test_no_answer_at_all_is_not_measured(self) -> None:
        assert judge_lengths([], None)["status"] == "not_measured"

    def test_the_limit_is_tried_unless_its_cache_alone_is_huge(self) -> None:
        assert lengths_to_try(4096, 1000) == ([16, 128, 512, 1024, 4080], None)
        assert lengths_to_try(300, None) == ([16, 128, 284], None)
        lengths, note = lengths_to_try(131_072, LIMIT_CACHE_BYTES // 100_000)
        assert lengths == [16, 128, 512, 1024]
        assert "131072" in str(note)

    def test_the_cache_is_two_tensors_a_layer(self) -> None:
        decoder = {"num_hidden_layers": 24, "num_key_value_heads": 2, "head_size": 64}

        assert cache_bytes_per_token({"model": {"decoder": decoder}}) == 2 * 24 * 2 * 64 * 4
        assert cache_bytes_per_token({"model": {}}) is None
        assert cache_growth([entry(16, 1), entry(128, 1), entry(512, 1)], 7) == {
            "calculated_bytes_per_token": 7,
            "measured_bytes_per_token": 10,
        }


def _logits(positions: int, vocabulary: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=2.0, size=(positions, vocabulary)).astype(np.float32)


def _full_kl(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    log_p, log_q = (x - np.log(np.exp(x.astype(np.float64)).sum(-1, keepdims=True)) for x in (one, other))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


class TestComparison:
    def test_with_a_small_vocabulary_the_divergence_is_exact(self) -> None:
        one, other = _logits(70, KEPT_TOKENS), _logits(70, KEPT_TOKENS, seed=1)

        found = kl_divergences(condensed(one, np.zeros(70, dtype=np.int32)), other)

        assert found == pytest.approx(_full_kl(one, other), abs=1e-4)

    def test_with_a_large_one_it_is_never_more_than_the_full_divergence(self) -> None:
        one, other = _logits(40, 3000), _logits(40, 3000, seed=1)

        found = kl_divergences(condensed(one, np.zeros(40, dtype=np.int32)), other)

        full = _full_kl(one, other)
        assert (found <= full + 1e-4).all()
        assert (found > 0.1 * full).all()

    def test_equal_models_are_at_no_distance(self) -> None:
        one = _logits(10, 500)

        assert kl_divergences(condensed(one, np.zeros(10, dtype=np.int32)), one) == pytest.approx(0, abs=1e-5)


def _reference(vocabulary: int = 300) -> tuple[Reference, np.ndarray]:
    logits = _logits(20, vocabulary)
    tokens = tuple(int(token) for token in np.random.default_rng(5).integers(vocabulary, size=20))
    sections = (
        Section("held_out", tokens, 1, condensed(logits[0:19], np.asarray(tokens[1:], dtype=np.int32))),
        Section("answers", tokens, 12, condensed(logits[11:19], np.asarray(tokens[12:], dtype=np.int32))),
    )
    answers = (
        Answer(({"role": "user", "content": "Grüße"},), "<u>Grüße", (1, 2), "Hallo"),
        Answer(({"role": "system", "content": "x"},), None, None, None),
    )
    matrices = {
        "head": MatrixPrint(70, 8, np.arange(64.0 * SIGNS).reshape(64, SIGNS), 3.5),
        "gate": MatrixPrint(3, 8, np.ones((3, SIGNS)), 0.5),
    }
    ropes = ((np.asarray([1.0, 0.1], dtype=np.float32), 1.0),)
    weights = WeightPrint(True, matrices, {"norm": np.ones(8, dtype=np.float32)}, ropes)
    yardsticks = {"int8": Yardstick(0.01, 0.99, 27)}
    return Reference({"layers": 2}, answers, yardsticks, sections, weights, ("a note",)), logits


class TestQuality:
    def test_the_source_itself_differs_in_nothing(self) -> None:
        reference, logits = _reference()

        found = measure_quality(reference, lambda tokens: logits, "int8", lambda share: None)

        assert found["held_out"]["positions"] == 19
        assert found["answers"]["positions"] == 8
        for part in (found["held_out"], found["answers"]):
            assert part["top1_agreement"] == 1
            assert part["kl_divergence"] == pytest.approx(0, abs=1e-5)
            assert part["perplexity_increase"] == pytest.approx(0, abs=1e-5)

    def test_distance_is_told_as_a_multiple_of_what_rounding_makes(self) -> None:
        reference, logits = _reference()
        worse = logits + 0.3 * _logits(20, 300, seed=9)

        found = measure_quality(reference, lambda tokens: worse, "int8", lambda share: None)

        mean = (19 * found["held_out"]["kl_divergence"] + 8 * found["answers"]["kl_divergence"]) / 27
        assert found["kl_over_rounding"] == pytest.approx(mean / 0.01, rel=1e-3)
        low, high = found["held_out"]["spread"]["kl_divergence"]
        assert low < found["held_out"]["kl_divergence"] < high

    def test_an_unknown_yardstick_gives_no_multiple(self) -> None:
        reference, logits = _reference()

        assert measure_quality(reference, lambda tokens: logits, "int3", lambda share: None)["kl_over_rounding"] is None

    def test_what_a_short_context_has_no_room_for_is_not_compared(self) -> None:
        reference, logits = _reference()
        asked: list[int] = []

        def logits_of(tokens: Sequence[int]) -> np.ndarray:
            asked.append(len(tokens))
            return logits[: len(tokens)]

        found = measure_quality(reference, logits_of, "int8", lambda share: None, context_length=11)

        assert (asked, found["held_out"]["positions"], found["answers"]) == ([10], 9, None)
        assert found["kl_over_rounding"] < 0.1

    def test_a_smaller_vocabulary_cannot_be_compared(self) -> None:
        reference, logits = _reference()

        with pytest.raises(OtherVocabulary, match="200 logits"):
            measure_quality(reference, lambda tokens: logits[:, :200], "int8", lambda share: None)


class TestReferenceFile:
    def test_it_comes_back_as_it_was_written_in_the_same_bytes(self, tmp_path: Path) -> None:
        reference, _ = _reference()
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            write_reference(reference, tmp_path / name)

        found = read_reference(tmp_path / "one")

        assert (found.facts, found.answers, found.yardsticks) == (
            reference.facts,
            reference.answers,
            reference.yardsticks,
        )
        for mine, theirs in zip(found.sections, reference.sections, strict=True):
            assert (mine.kind, mine.tokens, mine.start) == (theirs.kind, theirs.tokens, theirs.start)
            assert np.array_equal(mine.distribution.top_ids, theirs.distribution.top_ids)
            assert np.array_equal(mine.distribution.target_logprobs, theirs.distribution.target_logprobs)
        assert found.weights.is_tied
        assert {name: (each.rows, each.square) for name, each in found.weights.matrices.items()} == {
            "head": (70, 3.5),
            "gate": (3, 0.5),
        }
        assert np.array_equal(found.weights.matrices["head"].sums, reference.weights.matrices["head"].sums)
        assert np.array_equal(found.weights.vectors["norm"], np.ones(8))
        assert [(list(rope), factor) for rope, factor in found.weights.ropes] == [([1.0, np.float32(0.1)], 1.0)]
        for file in (tmp_path / "one").iterdir():
            assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()

    @pytest.mark.parametrize("file", ["reference.json", "reference.npz"])
    def test_one_that_is_cut_off_is_refused(self, tmp_path: Path, file: str) -> None:
        write_reference(_reference()[0], tmp_path)
        (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:200])

        with pytest.raises(BadArtifact, match="--fresh"):
            read_reference(tmp_path)


class TestEdgeCases:
    def tried(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, crashing: set[str]) -> dict[str, Any]:
        """The cases in a process that answers each, and dies at some."""

        def ask(program: Any, request: dict[str, Any], scratch: Path, *, on_progress: Any) -> dict[str, Any]:
            for name in request["names"]:
                on_progress(name, 0.5)
                if name in crashing:
                    raise RuntimeCrashed("the process crashed with a memory fault (SIGSEGV)")
            refused = edge_cases.MUST_BE_REFUSED
            outcomes = {name: "refused" if name in refused else "answered" for name in request["names"]}
            return {"cases": [{"name": name, "outcome": end, "detail": ""} for name, end in outcomes.items()]}

        monkeypatch.setattr(edge_cases, "ask", ask)
        return edge_cases.try_edge_cases(tmp_path, tmp_path, skip={}, text="x", report_progress=lambda *_: None)

    def test_all_that_end_cleanly_pass(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        found = self.tried(monkeypatch, tmp_path, set())

        assert found["status"] == "passed"
        assert [case["name"] for case in found["cases"]] == list(edge_cases.CASES)

    def test_a_crash_is_named_and_the_others_are_still_tried(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        found = self.tried(monkeypatch, tmp_path, {"a NUL character"})

        assert found["status"] == "failed"
        assert found["problem"] == "a NUL character: the process crashed with a memory fault (SIGSEGV)"
        ends = {case["name"]: case["outcome"] for case in found["cases"]}
        assert ends.pop("a NUL character") == "crashed"
        assert "not_tried" not in ends.values()

    def test_an_engine_that_always_crashes_is_not_asked_for_ever(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        found = self.tried(monkeypatch, tmp_path, set(edge_cases.CASES))

        assert [case["outcome"] for case in found["cases"]].count("crashed") == edge_cases.CRASHES_AT_MOST
        assert found["status"] == "failed"
