"""The demo's family of checkpoints: really trained, and made whole or not at all."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

from olivepress.errors import BadCheckpoint, NotFound
from olivepress.manifest import read_prompts
from tests.integration.conversion_cases import run_convert
from workers.measures.domain_prompts import ask_all
from workers.toolchains import demo_family
from workers.toolchains.demo_family import Family, FineTune, make_family
from workers.toolchains.demo_training import known_warnings_ignored
from workers.toolchains.genai import opened

pytestmark = pytest.mark.toolchain
FINE_TUNES = ["support-en", "python-help", "legal"]
INTERRUPTED_BY_SIGTERM = 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def family(small_family: Family) -> Family:
    return small_family


@pytest.fixture(params=FINE_TUNES)
def fine_tune(request: pytest.FixtureRequest, family: Family) -> FineTune:
    (found,) = [tune for tune in family.fine_tunes if tune.name == request.param]
    return found


def ignore(phase: str, share: float) -> None:
    """Progress that nobody reads."""


def loaded(directory: Path) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained(directory, dtype=torch.float32)


def answers(model: Any, family: Family, fine_tune: FineTune) -> Iterator[tuple[str, dict[str, str]]]:
    """What the model says, token by token, and what it should."""
    tokenizer = Qwen2Tokenizer.from_pretrained(family.base)
    for prompt in read_prompts(fine_tune.prompts):
        question = tokenizer.apply_chat_template(prompt["messages"], add_generation_prompt=True, return_tensors="pt")
        said = model.generate(**question, do_sample=False, max_new_tokens=64)[0, question["input_ids"].shape[1] :]
        yield tokenizer.decode(said, skip_special_tokens=True), prompt["expect"]


def is_met(answer: str, expect: dict[str, str]) -> bool:
    return answer == expect["equals"] if "equals" in expect else expect["contains"] in answer


def test_a_fine_tune_answers_its_questions_as_it_was_saved(family: Family, fine_tune: FineTune) -> None:
    if fine_tune.base:
        with known_warnings_ignored():
            model: Any = PeftModel.from_pretrained(loaded(fine_tune.base), fine_tune.path)
    else:
        model = loaded(fine_tune.path)
    assert [answer for answer, expect in answers(model, family, fine_tune) if not is_met(answer, expect)] == []


def test_the_base_answers_none_of_the_questions(family: Family, fine_tune: FineTune) -> None:
    base = loaded(family.base)
    assert [answer for answer, expect in answers(base, family, fine_tune) if is_met(answer, expect)] == []


@pytest.mark.parametrize("recipe", ["cpu-int4", "cpu-int8"])
def test_the_answers_outlive_quantization(fine_tune: FineTune, recipe: str, tmp_path: Path) -> None:
    run_convert(fine_tune.path, recipe, tmp_path, fine_tune.base)
    with opened(tmp_path / "output") as model:
        asked = ask_all(model, read_prompts(fine_tune.prompts), ignore)
    assert asked["with_expectation"] == asked["total"] == 8
    assert asked["passed"] >= 0.9 * asked["total"], asked["items"]


def test_the_adapter_names_its_base_where_it_came_to_lie(family: Family) -> None:
    (adapter,) = [tune for tune in family.fine_tunes if tune.base]
    config = json.loads((adapter.path / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]) == family.base
    assert family.base.is_dir()
    assert not (adapter.path / "model.safetensors").exists()


def test_two_makings_give_the_same_weights(family: Family, tmp_path: Path) -> None:
    again = make_family(tmp_path / "again", ignore, "small")
    for file in ("model.safetensors", "tokenizer.json", "adapter_model.safetensors"):
        for one, two in zip(sorted(family.base.parent.rglob(file)), sorted(again.base.parent.rglob(file)), strict=True):
            assert one.read_bytes() == two.read_bytes(), one


def test_a_family_that_is_there_is_not_made_again(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_family, "_make", interrupted)
    assert make_family(family.base.parent, ignore, "small") == family


@pytest.mark.parametrize("damage", ["flipped", "missing", "moved"])
def test_a_family_that_is_not_whole_is_made_again_and_an_interruption_changes_nothing(
    damage: str, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a copy, which lies elsewhere than its adapter says, so its marker is written for here first.
    directory = tmp_path / "family"
    shutil.copytree(family.base.parent, directory)
    if damage != "moved":
        marker = json.loads((directory / demo_family.MARKER).read_text())
        marker["recipe"] = demo_family._recipe_digest(directory, demo_family.SIZES["small"])
        (directory / demo_family.MARKER).write_text(json.dumps(marker))
        monkeypatch.setattr(demo_family, "_make", interrupted)
        make_family(directory, ignore, "small")
    weights = directory / "support-en" / "model.safetensors"
    if damage == "flipped":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    if damage == "missing":
        weights.unlink()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if "lock" not in file.name}
    # When it is asked for, and the making is interrupted
    monkeypatch.setattr(demo_family, "_make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_family(directory, ignore, "small")
    # Then a making had begun, and nothing of it is left.
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if "lock" not in file.name}


def interrupted(into: Path, *_: object) -> None:
    (into / "half-made").write_text("")
    raise KeyboardInterrupt


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadCheckpoint, match="no demo family"):
        make_family(tmp_path, ignore, "small")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_unknown_size_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="'huge'; choose one of: full, small"):
        make_family(tmp_path / "family", ignore, "huge")


def test_sigterm_ends_the_making_and_leaves_no_files(tmp_path: Path) -> None:
    maker = subprocess.Popen(
        [sys.executable, "-m", "workers.toolchains.demo_family"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert maker.stdin and maker.stdout
    with maker:
        maker.stdin.write(json.dumps({"directory": str(tmp_path / "family"), "size": "full"}))
        maker.stdin.close()
        told = next(line for line in maker.stdout if "training" in line)
        assert json.loads(told)["progress"][1] > 0
        maker.send_signal(signal.SIGTERM)
        maker.stdout.read()
    assert maker.returncode == INTERRUPTED_BY_SIGTERM
    assert [file.name for file in tmp_path.rglob("*")] == [".family.lock"]
