"""Which of a directory's files holds the chat template that counts."""

import json
from pathlib import Path

import pytest

from olivepress.checkpoints.chat_template import ChatTemplate, read_chat_template
from olivepress.errors import BadCheckpoint


def _directory(path: Path, *, jinja: str | None = None, **config: object) -> Path:
    if jinja is not None:
        (path / "chat_template.jinja").write_text(jinja)
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_the_template_file_counts_before_a_stale_entry_in_tokenizer_config(tmp_path: Path) -> None:
    directory = _directory(tmp_path, jinja="new", chat_template="stale")

    assert read_chat_template(directory) == ChatTemplate("new")


def test_of_several_named_templates_the_default_one_counts(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]

    assert read_chat_template(_directory(tmp_path, chat_template=named)) == ChatTemplate("plain")


def test_no_template_is_none_and_not_an_empty_one(tmp_path: Path) -> None:
    assert read_chat_template(_directory(tmp_path, chat_template=" ")) is None
    assert read_chat_template(_directory(tmp_path)) is None


def test_special_and_added_tokens_come_from_tokenizer_config(tmp_path: Path) -> None:
    directory = _directory(
        tmp_path,
        chat_template="x",
        bos_token={"content": "<s>", "special": True},
        eos_token="</s>",
        pad_token=None,
        added_tokens_decoder={"7": {"content": "<|user|>"}},
    )

    chat_template = read_chat_template(directory)

    assert chat_template == ChatTemplate("x", {"bos_token": "<s>", "eos_token": "</s>"}, ("</s>", "<s>", "<|user|>"))


def test_a_broken_tokenizer_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")

    with pytest.raises(BadCheckpoint, match=r"tokenizer_config\.json is not valid JSON"):
        read_chat_template(tmp_path)
