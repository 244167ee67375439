"""Calibration text: files that are read, what is told of wrong ones, and which recipes need it."""

import json
from pathlib import Path
from typing import Any

import pytest

from olivepress.errors import BadManifest
from olivepress.manifest import load_manifest, parse_manifest
from olivepress.recipes.calibration import MAX_BYTES, MAX_ENTRIES, PIECE_CHARACTERS, check_calibration, read_calibration
from olivepress.recipes.files import parse_recipe
from olivepress.recipes.recipe import BUILT_IN, Recipe

GPTQ = {"before": [{"type": "Gptq", "config": {"group_size": 32}}]}
DYNAMIC = {"after": [{"type": "OnnxDynamicQuantization"}], "builder_precision": "fp32"}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def own(**keys: Any) -> Recipe:
    return parse_recipe({"precision": "int4", **keys}, "a.yaml")


class TestFiles:
    def test_lines_of_every_form_are_taken_without_their_other_keys(self, tmp_path: Path) -> None:
        chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
        lines: list[dict[str, Any]] = [
            {"text": "A court may wait.\u2028It does.", "source": "x"},
            {"prompt": "When?", "expect": {"contains": "3 days"}},
            {"prompt": "When?", "completion": "In 3 days."},
            chat | {"id": 4},
        ]
        file = write(tmp_path / "c.jsonl", "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines))

        assert read_calibration(file) == [
            {"text": "A court may wait.\u2028It does."},
            {"prompt": "When?"},
            {"prompt": "When?", "completion": "In 3 days."},
            chat,
        ]

    def test_paragraphs_of_plain_text_are_put_together_and_none_is_lost(self, tmp_path: Path) -> None:
        paragraphs = [f"Paragraph {number}. " + "word " * 100 for number in range(40)]
        file = write(tmp_path / "legal.txt", "\r\n \n".join(paragraphs) + "\n")

        entries = read_calibration(file)

        assert max(len(entry["text"]) for entry in entries) <= PIECE_CHARACTERS + 2
        assert 5 <= len(entries) < 10
        text = " ".join(entry["text"] for entry in entries)
        assert [f"Paragraph {number}." in text for number in range(40)] == [True] * 40

    @pytest.mark.parametrize(
        ("name", "text", "told"),
        [
            ("c.jsonl", '{"text": "a"}\nnot json', "line 2 is no JSON"),
            ("c.jsonl", '{"txt": "a"}', "line 1 has no text; write one JSON object a line, with 'text', 'prompt' or"),
            ("c.jsonl", '["a"]', "line 1 has no text"),
            ("c.jsonl", '{"text": "a", "prompt": "b"}', "line 1: an entry has one of: text, prompt, messages"),
            ("c.jsonl", '{"text": "a", "completion": "b"}', "completion answers a prompt"),
            ("c.jsonl", '{"messages": [{"role": "robot", "content": "b"}]}', "line 1: messages.0.role"),
            ("c.jsonl", '{"messages": []}', "line 1: messages"),
            ("c.jsonl", "\n\n", "holds no calibration text"),
            ("c.txt", " \n\n ", "holds no calibration text"),
            ("c.jsonl", '{"text": "a"}\n' * (MAX_ENTRIES + 1), f"has {MAX_ENTRIES + 1} entries, the most is"),
            ("c.txt", "a" * (MAX_BYTES + 1), f"more than the {MAX_BYTES} bytes"),
        ],
        ids=lambda value: value[:20] if isinstance(value, str) else "",
    )
    def test_a_wrong_file_is_told_with_the_line(self, tmp_path: Path, name: str, text: str, told: str) -> None:
        with pytest.raises(BadManifest) as caught:
            read_calibration(write(tmp_path / name, text))
        assert told in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)

    def test_a_file_that_is_no_text_or_not_there_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "c.txt").write_bytes(b"abc\xff")
        with pytest.raises(BadManifest, match=r"c\.txt is no UTF-8 text \(byte 3\)"):
            read_calibration(tmp_path / "c.txt")
        with pytest.raises(BadManifest, match=r"cannot read the calibration file .*nowhere\.jsonl"):
            read_calibration(tmp_path / "nowhere.jsonl")


class TestManifest:
    def test_the_texts_travel_in_the_manifest_and_a_checkpoints_own_stand_beside_the_batchs(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path / "all.txt", "For all.")
        write(tmp_path / "own.jsonl", '{"prompt": "For one?"}')
        text = "calibration: all.txt\ncheckpoints: [a, {path: b, calibration: own.jsonl}]\n"

        batch = load_manifest(write(tmp_path / "batch.yaml", text))

        assert batch.calibration is not None and batch.calibration[0].text == "For all."
        first, second = batch.checkpoints
        assert first.calibration is None
        assert second.calibration is not None and second.calibration[0].prompt == "For one?"

    @pytest.mark.parametrize(
        ("calibration", "told"),
        [
            ("c.jsonl", "calibration: Input should be a valid list"),
            ([], "calibration: List should have at least 1 item"),
            ([{}], "calibration.0: an entry has one of"),
            ([{"text": "a", "from": "b"}], "calibration.0.from: there is no such key"),
            ([{"text": "a"}] * (MAX_ENTRIES + 1), f"at most {MAX_ENTRIES} items"),
            ([{"text": "a" * MAX_BYTES}], f"more than the {MAX_BYTES} that are taken"),
        ],
        ids=["path", "none", "nothing", "key", "many", "large"],
    )
    def test_what_a_request_may_not_hold_is_told(self, calibration: Any, told: str) -> None:
        with pytest.raises(BadManifest) as caught:
            parse_manifest({"checkpoints": [{"path": "/m"}], "calibration": calibration})
        assert told in str(caught.value)
        assert len(str(caught.value)) < 400


class TestNeed:
    def test_a_recipe_that_learns_from_text_is_refused_without_and_taken_with_it(self) -> None:
        recipe = own(name="ours", olive_passes=GPTQ)

        with pytest.raises(BadManifest, match=r"'ours' runs Gptq, which learns from text.*add 'calibration: FILE'"):
            check_calibration(recipe, has_calibration=False)
        check_calibration(recipe, has_calibration=True)

    @pytest.mark.parametrize("has_calibration", [True, False])
    def test_other_recipes_need_none(self, has_calibration: bool) -> None:
        for recipe in (*BUILT_IN.values(), own(precision="int8", olive_passes=DYNAMIC)):
            check_calibration(recipe, has_calibration=has_calibration)


class TestSteps:
    def test_recipes_that_quantize_one_conversion_share_it(self) -> None:
        recipes = [
            own(precision="int8", olive_passes=DYNAMIC),
            own(olive_passes={"after": [{"type": "OnnxKQuantQuantization"}], "builder_precision": "fp32"}),
            BUILT_IN["cpu-fp32"],
        ]

        assert [recipe.quantizes for recipe in recipes] == ["onnx", "onnx", None]
        first, second, plain = (recipe.build_options() for recipe in recipes)
        assert first == second == plain
        assert recipes[0].quantize_options() != recipes[1].quantize_options()
        assert BUILT_IN["cpu-fp32"].quantize_options() == {}

    def test_a_quantized_checkpoint_is_built_as_the_recipe_says_without_its_passes(self) -> None:
        recipe = own(olive_passes=GPTQ)

        assert (recipe.quantizes, recipe.needs_calibration) == ("checkpoint", True)
        assert recipe.build_options() == own().build_options()
        assert recipe.quantize_options()["passes"] == GPTQ["before"]
        assert own(olive_passes={"before": [{"type": "Gptq"}]}).quantize_options() != recipe.quantize_options()

    def test_passes_before_run_within_convert_where_others_come_after(self) -> None:
        both = own(precision="int8", olive_passes=GPTQ | DYNAMIC)

        assert (both.quantizes, both.needs_calibration) == ("onnx", True)
        assert both.build_options()["olive_passes"]["before"] == GPTQ["before"]
        assert [one["type"] for one in both.quantize_options()["passes"]] == ["OnnxDynamicQuantization"]

    def test_a_pass_that_quantizes_nothing_is_no_step_of_its_own(self) -> None:
        recipe = own(olive_passes={"before": [{"type": "QuaRot"}]})

        assert (recipe.quantizes, recipe.needs_calibration, recipe.quantize_options()) == (None, False, {})
        assert recipe.build_options()["olive_passes"]["before"]
