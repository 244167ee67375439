"""The quantize step: passes of Olive over a conversion that recipes share, and calibrated ones over the checkpoint."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from olive.passes.pytorch.gptq import Gptq
from transformers import AutoTokenizer

from olivepress.checkpoints.files import hash_file
from olivepress.errors import BadManifest, BadRecipe, CheckpointChanged, ConversionFailed
from olivepress.recipes.calibration import read_calibration
from olivepress.recipes.files import parse_recipe
from olivepress.recipes.recipe import BUILT_IN, Recipe
from tests.checkpoints import CORPUS, tiny_adapter, tiny_checkpoint
from tests.integration.conversion_cases import (
    MODEL_FILES,
    greedy_in_runtime,
    in_torch,
    run_convert,
    run_quantize,
    run_recipe,
)
from workers.toolchains import calibration, olive_format
from workers.toolchains.stored_weights import StoredWeights

pytestmark = pytest.mark.toolchain

TEXTS = [{"text": text} for text in CORPUS * 6]
GPTQ = {"type": "Gptq", "config": {"group_size": 32}}


def own(**keys: Any) -> Recipe:
    return parse_recipe({"precision": "int4", **keys}, "a.yaml")


def before(*passes: dict[str, Any], **keys: Any) -> Recipe:
    return own(olive_passes={"before": list(passes)}, **keys)


def after(name: str, precision: str, **config: Any) -> Recipe:
    passes = {"after": [{"type": name, "config": config}], "builder_precision": "fp32"}
    return own(precision=precision, olive_passes=passes)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices are tiny: a second thread makes them four times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "qwen2", "qwen2")


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model directory that recipes share."""
    workspace = tmp_path_factory.mktemp("converted")
    run_convert(source, "cpu-fp32", workspace)
    return workspace / "output"


def files_of(directory: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in sorted(directory.iterdir())}


def operators(artifact: Path) -> set[str]:
    return {node.op_type for node in onnx.load(artifact / "model.onnx", load_external_data=False).graph.node}


class TestOnASharedConversion:
    @pytest.mark.parametrize(
        ("recipe", "operator", "correlation"),
        [
            (after("OnnxDynamicQuantization", "int8"), "MatMulInteger", 0.99),
            (after("OnnxQuantization", "int8", quant_mode="dynamic"), "MatMulInteger", 0.99),
            (after("OnnxKQuantQuantization", "int4"), "MatMulNBits", 0.85),
            (after("OnnxKQuantQuantization", "int8", bits=8), "MatMulNBits", 0.999),
            (after("OnnxBlockWiseRtnQuantization", "int4", block_size=32), "MatMulNBits", 0.85),
        ],
        ids=["dynamic", "dynamic-by-mode", "k-quant", "k-quant-8", "rtn"],
    )
    def test_a_pass_makes_a_smaller_model_of_it_that_generates_and_leaves_it_as_it_was(
        self, source: Path, converted: Path, tmp_path: Path, recipe: Recipe, operator: str, correlation: float
    ) -> None:
        assert recipe.build_options() == BUILT_IN["cpu-fp32"].build_options()
        was = files_of(converted)

        result = run_quantize(source, recipe, tmp_path, inputs={"artifact": converted})

        output = tmp_path / "output"
        assert files_of(converted) == was
        assert set(files_of(output)) == MODEL_FILES
        beside = MODEL_FILES - {"model.onnx", "model.onnx.data"}
        assert {name: files_of(output)[name] for name in beside} == {name: was[name] for name in beside}
        assert operator in operators(output)
        assert (output / "model.onnx.data").stat().st_size < 0.8 * (converted / "model.onnx.data").stat().st_size
        assert result["parity"]["correlation"] > correlation
        assert len(greedy_in_runtime(output, 8)) == 8

    def test_a_pass_that_finds_nothing_to_quantize_gives_no_int4_model(self, source: Path, tmp_path: Path) -> None:
        passes = {"after": [{"type": "OnnxKQuantQuantization"}], "builder_precision": "fp16"}

        with pytest.raises(
            ConversionFailed, match=r"quantized nothing of the int4 model of .*take builder_precision fp32"
        ):
            run_recipe(source, own(olive_passes=passes), tmp_path)

    def test_a_checkpoint_that_changed_meanwhile_gives_no_result(self, converted: Path, tmp_path: Path) -> None:
        source = tiny_checkpoint(tmp_path / "source", "qwen2")

        def change_it(phase: str, share: float) -> None:
            if phase == "check":
                (source / "config.json").write_text((source / "config.json").read_text() + "\n")

        with pytest.raises(CheckpointChanged):
            run_quantize(
                source,
                after("OnnxDynamicQuantization", "int8"),
                tmp_path / "workspace",
                inputs={"artifact": converted},
                report_progress=change_it,
            )


class TestCalibrated:
    @pytest.mark.parametrize("name", ["jsonl", "text"])
    def test_gptq_learns_from_a_teams_file(self, source: Path, tmp_path: Path, name: str) -> None:
        if name == "jsonl":
            file = tmp_path / "support.jsonl"
            chats = [{"messages": [{"role": "user", "content": text}], "id": 1} for text in CORPUS * 3]
            file.write_text("\n".join(json.dumps(line) for line in [*chats, {"prompt": CORPUS[0]}, *TEXTS]))
        else:
            file = tmp_path / "legal.txt"
            file.write_text("\n\n".join(CORPUS * 6))

        result = run_recipe(source, before(GPTQ), tmp_path / "w", read_calibration(file))

        assert result["parity"]["correlation"] > 0.85
        assert len(greedy_in_runtime(tmp_path / "w" / "output", 8)) == 8

    @pytest.mark.parametrize(
        ("family", "is_symmetric"), [("llama", True), ("phi3", False), ("gemma", True), ("lfm2", False)]
    )
    def test_the_integers_that_it_chose_are_those_of_the_model(
        self, tmp_path: Path, family: str, is_symmetric: bool
    ) -> None:
        source = tiny_checkpoint(tmp_path / "source", family)
        recipe = before({"type": "Gptq", "config": {"group_size": 16, "sym": is_symmetric}}, block_size=32)

        run_recipe(source, recipe, tmp_path, TEXTS)

        quantized = tmp_path / "first" / "output"
        found = olive_format.read_olive_quantization(quantized)
        assert found is not None
        chosen = list(olive_format.packed_matrices(quantized, found))
        rows = {matrix.name: matrix.widened().shape[0] for matrix in chosen}
        stored = StoredWeights(tmp_path / "output" / "model.onnx").placed(rows, is_tied=False)
        assert set(stored) == set(rows)
        for matrix in chosen:
            held = stored[matrix.name]
            assert held.rounding is not None and held.rounding.block_size == 16
            assert torch.equal(held.read(slice(0, held.rows)), matrix.widened()), matrix.name

    def test_two_runs_give_the_same_bytes_and_name_no_place(self, source: Path, tmp_path: Path) -> None:
        for place in ("one", "two"):
            run_recipe(source, before(GPTQ), tmp_path / place, TEXTS)

        for output in ("first/output", "output"):
            one, two = (tmp_path / place / output for place in ("one", "two"))
            assert files_of(one) == files_of(two)
            assert not [path for path in one.iterdir() if str(tmp_path).encode() in path.read_bytes()]

    def test_what_was_not_quantized_is_as_it_was(self, source: Path, tmp_path: Path) -> None:
        run_quantize(source, before(GPTQ), tmp_path, calibration=TEXTS)

        quantized, plain = tmp_path / "output", tmp_path / "plain"
        found = olive_format.read_olive_quantization(quantized)
        assert found is not None
        olive_format.widen(quantized, found, plain)
        ours, theirs = in_torch(source).state_dict(), in_torch(plain).state_dict()
        differ = {name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])}
        assert differ == {f"{name}.weight" for name in olive_format_names(quantized)}
        beside = set(files_of(source)) - {"config.json", "model.safetensors"}
        assert "tokenizer.json" in beside
        assert {name: files_of(quantized)[name] for name in beside} == {name: files_of(source)[name] for name in beside}

    def test_an_adapter_is_merged_before_it(self, source: Path, tmp_path: Path) -> None:
        adapter = tiny_adapter(tmp_path / "adapter", source)

        run_quantize(adapter, before(GPTQ), tmp_path / "w", base=source, calibration=TEXTS)

        assert (tmp_path / "w" / "output" / "tokenizer.json").is_file()
        assert olive_format_names(tmp_path / "w" / "output")

    @pytest.mark.parametrize(
        "passes",
        [
            [{"type": "QuaRot", "config": {}}, GPTQ],
            [{"type": "Rtn", "config": {"group_size": 32, "lm_head": True}}],
            [{"type": "KQuant", "config": {"group_size": 32}}],
        ],
        ids=["rotated", "nearest", "k-quant"],
    )
    def test_passes_before_the_builder_go_together(
        self, source: Path, tmp_path: Path, passes: list[dict[str, Any]]
    ) -> None:
        run_recipe(source, before(*passes), tmp_path, TEXTS)

        assert len(greedy_in_runtime(tmp_path / "output", 8)) == 8

    def test_a_pass_on_either_side_of_the_builder(self, source: Path, tmp_path: Path) -> None:
        dynamic = {"after": [{"type": "OnnxDynamicQuantization"}], "builder_precision": "fp32"}

        run_recipe(source, own(precision="int8", olive_passes={"before": [GPTQ], **dynamic}), tmp_path, TEXTS)

        assert "MatMulInteger" in operators(tmp_path / "output")

    def test_eight_bits_say_what_the_source_says(self, source: Path, tmp_path: Path) -> None:
        recipe = before({"type": "Gptq", "config": {"bits": 8, "group_size": 32}}, precision="int8")

        result = run_quantize(source, recipe, tmp_path, calibration=TEXTS)

        assert result["parity"]["correlation"] > 0.999

    def test_its_progress_is_told(self, source: Path, tmp_path: Path) -> None:
        told: list[tuple[str, float]] = []

        run_quantize(source, before(GPTQ), tmp_path, calibration=TEXTS, report_progress=lambda *one: told.append(one))

        assert [share for _, share in told] == sorted(share for _, share in told)
        assert len([phase for phase, _ in told if phase == "quantize"]) > 10
        assert told[-1] == ("check", 1.0)


class TestRefusals:
    def test_a_result_that_says_something_else_is_not_let_through(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process = Gptq.process_module

        def spoil(module: torch.nn.Module, **options: Any) -> None:
            process(module, **options)
            module.weight.data = module.weight.data.flip(0)

        monkeypatch.setattr(Gptq, "process_module", staticmethod(spoil))

        with pytest.raises(ConversionFailed, match=r"what Gptq made of .* does not say what its source says"):
            run_quantize(source, before(GPTQ), tmp_path, calibration=TEXTS)

    def test_a_pass_that_fails_is_told_with_its_reason(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(ConversionFailed, match=r"running Gptq over .* failed: in_features 64 must be divisible by"):
            run_quantize(source, before({"type": "Gptq"}), tmp_path, calibration=TEXTS)

    def test_calibration_that_is_missing_is_told_before_anything_runs(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(BadRecipe, match="learns from text of the fine-tune's domain; submit some"):
            run_quantize(source, before(GPTQ), tmp_path)
        assert not list((tmp_path / "scratch").iterdir())

    @pytest.mark.parametrize(
        ("entries", "told"),
        [
            ([{"text": "Too short."}], r"has \d+ tokens, too few to learn from \(256 at least"),
            (
                [*TEXTS, {"messages": [{"role": "system", "content": "Be brief."}]}],
                rf"entry {len(TEXTS) + 1} of the calibration text cannot be written with the checkpoint's chat "
                "template: no system, please; change its messages",
            ),
        ],
        ids=["short", "template"],
    )
    def test_text_that_cannot_be_used_is_told(self, source: Path, entries: list[dict[str, Any]], told: str) -> None:
        template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system, please') }}{% endif %}"

        with pytest.raises(BadManifest, match=told):
            calibration.tokenized(entries, source, template)


class TestTokens:
    def test_chats_are_written_with_the_template_and_texts_end(self, source: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(source)
        asked = [{"role": "user", "content": CORPUS[0]}]
        answered = [*asked, {"role": "assistant", "content": CORPUS[1]}]
        entries = [{"messages": answered}, {"prompt": CORPUS[0]}, {"prompt": CORPUS[0], "completion": CORPUS[1]}] * 4
        chats = [
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=len(messages) == 1)
            for messages in (answered, asked, answered)
        ] * 4

        tokens = calibration.tokenized([*entries, {"text": CORPUS[2]}], source)

        assert len({len(window) for window in tokens}) == 1
        expected = [token for chat in chats for token in tokenizer.encode(chat, add_special_tokens=False)]
        expected += [*tokenizer.encode(CORPUS[2]), tokenizer.eos_token_id]
        flat = [token for window in tokens for token in window]
        assert flat == expected[: len(flat)]
        assert len(expected) - len(flat) < calibration.WINDOW

    def test_of_much_text_an_even_part_is_taken(self, source: Path) -> None:
        many = [{"text": f"{number} {CORPUS[number % len(CORPUS)]}"} for number in range(1500)]

        windows = calibration.tokenized(many, source)

        assert sum(map(len, windows)) <= calibration.MOST_TOKENS
        tokenizer = AutoTokenizer.from_pretrained(source)
        texts = [tokenizer.decode(window) for window in (windows[0], windows[-1])]
        assert texts[0].startswith("0 ")
        assert max(int(number) for number in re.findall(r"\b\d{4}\b", texts[1])) > 1380
        assert np.mean([len(window) for window in windows]) == calibration.WINDOW


def olive_format_names(checkpoint: Path) -> list[str]:
    """The matrices of a quantized checkpoint that are quantized."""
    found = olive_format.read_olive_quantization(checkpoint)
    assert found is not None
    return [matrix.name for matrix in olive_format.packed_matrices(checkpoint, found)]
