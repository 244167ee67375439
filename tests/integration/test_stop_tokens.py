"""An answer ends where config, tokenizer and chat template end it, and the published model knows all of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from olivepress.checkpoints.chat_template import ChatTemplate, end_of_turn
from tests.artifacts import converted
from tests.checkpoints import CHAT_TEMPLATE, tiny_checkpoint
from tests.integration.ingest_cases import edit_json, run
from workers.steps import package
from workers.steps.context import StepContext

ENDOFTEXT, IM_START, IM_END = 509, 510, 511
TOKENS = ("<|end|>", "<|end|>x", "</s>", "<|user|>")


@pytest.mark.parametrize(
    ("source", "ending"),
    [
        ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}", "<|end|>"),
        ("{% for m in messages %}{{ m.content }} \n<|end|>x{% endfor %}", "<|end|>x"),
        ("{% for m in messages %}[{{ m.content }}]{{ eos_token }}{% endfor %}", None),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", "</s>"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None),
        ("{% for m in messages %}<|user|>{{ m.content }}{% endfor %}", None),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}<|end|>{% endfor %}", None),
        ("{{ raise_exception('only systems may speak') }}", None),
    ],
)
def test_the_end_of_a_turn_is_the_token_right_after_an_answer(source: str, ending: str | None) -> None:
    assert end_of_turn(ChatTemplate(source, {"eos_token": "</s>"}), TOKENS) == ending


@pytest.mark.toolchain
class TestACheckpointThatForgetsTheEndOfATurn:
    @pytest.fixture
    def forgetful(self, tmp_path: Path) -> Path:
        """Its config, generation_config and tokenizer know the end of a text only."""
        directory = tiny_checkpoint(tmp_path / "forgetful")
        for name in ("config.json", "generation_config.json"):
            edit_json(directory / name, eos_token_id=ENDOFTEXT)
        edit_json(directory / "tokenizer_config.json", eos_token="<|endoftext|>")
        return directory

    def test_ingest_tells_it(self, forgetful: Path) -> None:
        (note,) = run(forgetful)["notes"]

        assert note.startswith(f"the chat template ends an answer with '<|im_end|>' (token {IM_END}), which neither")

    def test_a_special_token_that_ends_nothing_is_told_too(self, forgetful: Path) -> None:
        for name in ("config.json", "generation_config.json"):
            edit_json(forgetful / name, eos_token_id=IM_START)

        assert "the published model stops there too" in run(forgetful)["notes"][0]

    def test_one_that_names_it_is_not_told(self, tmp_path: Path) -> None:
        assert run(tiny_checkpoint(tmp_path / "sound"))["notes"] == []


@pytest.mark.toolchain
@pytest.mark.parametrize(
    ("stops", "packaged"),
    [
        (ENDOFTEXT, [ENDOFTEXT, IM_END]),
        ([ENDOFTEXT, IM_START], [ENDOFTEXT, IM_START, IM_END]),
        (IM_END, IM_END),
        ([IM_END, ENDOFTEXT], [IM_END, ENDOFTEXT]),
    ],
)
def test_the_package_stops_where_the_template_does(tmp_path: Path, stops: Any, packaged: Any) -> None:
    artifact = converted(tmp_path / "artifact")
    config = json.loads((artifact / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = stops
    (artifact / "genai_config.json").write_text(json.dumps(config))
    (artifact / "chat_template.jinja").write_text(CHAT_TEMPLATE)

    (tmp_path / "package").mkdir()
    spec = {"foundry": {}, "context_length": 1024, "family": "qwen2"}
    package.run(spec, StepContext(tmp_path / "package", tmp_path, tmp_path / "lock", {"artifact": artifact}))

    written = json.loads((tmp_path / "package" / "genai_config.json").read_text())
    assert written["model"]["eos_token_id"] == packaged
