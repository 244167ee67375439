"""batch.yaml and prompts files: what is read, and how wrong ones are told."""

import json
from pathlib import Path

import pytest

from olivepress.errors import BadManifest
from olivepress.manifest import load_manifest, parse_manifest, read_prompts


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_and_prompts_are_relative_to_the_manifest(tmp_path: Path) -> None:
    write(tmp_path / "q.jsonl", '{"prompt": "Hi", "expect": {"contains": "o"}}\n\n')
    manifest = write(
        tmp_path / "batch.yaml",
        "recipes: [cpu-int4, cpu-int8]\nprompts: q.jsonl\ncheckpoints:\n  - runs/a\n  - {path: /abs/b, base: base}\n",
    )
    batch = load_manifest(manifest)
    assert [entry.path for entry in batch.checkpoints] == [str(tmp_path / "runs/a"), "/abs/b"]
    assert batch.checkpoints[1].base == str(tmp_path / "base")
    assert batch.prompts is not None
    assert batch.prompts[0].prompt == "Hi"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("checkpoints: []", "checkpoints: List should have at least 1 item"),
        ("checkpoints: [{pth: a}]", "pth: there is no such key"),
        ("checkpoints: [a]\npriority: 99", "priority: Input should be less than or equal to 9"),
        ("checkpoints: [a]\nladder: [cpu-int4]", "ladder: List should have at least 2 items"),
        ("checkpoints: [a]\nrecipes: [cpu-int4]\nladder: [cpu-int4, cpu-int8]", "recipes and ladder exclude each"),
        ("checkpoints: [a]\nsoak: long", "soak 'long' is no time and no number of sessions"),
        ("checkpoints: [a]\nmystery: 1", "mystery: there is no such key"),
        ("- a", "holds no manifest"),
        ("a: [", "is no YAML"),
        ("checkpoints: [a]\nprompts: missing.jsonl", "cannot read the prompts file"),
    ],
)
def test_a_wrong_manifest_is_told_with_the_key_that_is_wrong(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BadManifest) as caught:
        load_manifest(write(tmp_path / "batch.yaml", text))
    assert told in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_a_missing_manifest_says_which_file(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match=r"nowhere\.yaml"):
        load_manifest(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("not json", "line 2 is no JSON"),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "either messages or prompt"),
        ('{"expect": {"equals": "x"}}', "either messages or prompt"),
        ('{"prompt": "a", "expect": {}}', "expect needs one of"),
        ('{"prompt": "a", "expect": {"regex": "("}}', "no regular expression"),
        ('{"prompt": "a", "expect": {"json_schema": {"type": "obj"}}}', "no usable JSON schema"),
        ('{"prompt": "a", "expect": {"json_schema": "{}"}}', "valid dictionary"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "role"),
    ],
)
def test_a_wrong_prompt_is_told_with_its_line(tmp_path: Path, line: str, told: str) -> None:
    path = write(tmp_path / "q.jsonl", json.dumps({"prompt": "fine"}) + "\n" + line + "\n")
    with pytest.raises(BadManifest, match="line 2") as caught:
        read_prompts(path)
    assert told in str(caught.value)


def test_an_empty_prompts_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match="holds no prompt"):
        read_prompts(write(tmp_path / "q.jsonl", "\n"))


def test_what_the_api_takes_is_checked_the_same_way() -> None:
    with pytest.raises(BadManifest, match="team"):
        parse_manifest({"checkpoints": [{"path": "/a"}], "team": "Not A Team"})
