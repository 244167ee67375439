"""Names, inference_model.json and checksums as Foundry Local and its users know them."""

import json
from pathlib import Path

import pytest

from olivepress.errors import BadArtifact, BadManifest
from olivepress.foundry.inference_model import (
    fitting,
    foundry_name,
    inference_model_json,
    read_sums,
    scan_rules,
    sums_text,
)
from olivepress.recipes.recipe import FoundrySettings


def test_a_version_is_named_by_model_and_number() -> None:
    assert foundry_name("support-en-int4", 1) == "support-en-int4:1"


@pytest.mark.parametrize(
    "name", ["", "-x", ".x", "a b", "a:b", "a/b", "ä", "a.", "a..b", "con", "NUL", "com1.x", "x" * 129, "a\n"]
)
def test_a_name_that_a_file_system_or_the_runtime_refuses_is_refused(name: str) -> None:
    with pytest.raises(BadManifest, match="cannot be a name in Foundry Local"):
        foundry_name(name, 1)


@pytest.mark.parametrize("number", [0, -1])
def test_versions_count_from_one(number: int) -> None:
    with pytest.raises(BadManifest, match="versions count from 1"):
        foundry_name("a", number)


def test_inference_model_json_has_the_form_that_users_know() -> None:
    prompt_template = {
        "system": "<s>{Content}",
        "user": "<u>{Content}",
        "assistant": "{Content}",
        "prompt": "{Content}",
    }

    content = inference_model_json(
        model="support-en-int4",
        number=1,
        description="a test",
        prompt_template=prompt_template,
        foundry=FoundrySettings(),
    )

    assert list(content) == ["Name", "Description", "Version", "PromptTemplate", "ModelConfig"]
    assert content == {
        "Name": "support-en-int4:1",
        "Description": "a test",
        "Version": "1.0",
        "PromptTemplate": prompt_template,
        "ModelConfig": {"max_length": 2048, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1},
    }


def test_a_prompt_template_that_could_not_be_derived_is_left_out() -> None:
    content = inference_model_json(model="a", number=3, description="", prompt_template=None, foundry=FoundrySettings())

    assert "PromptTemplate" not in content
    assert content["Name"] == "a:3"


def test_answers_never_grow_beyond_the_context() -> None:
    assert fitting(FoundrySettings(max_length=2048), 512).max_length == 512
    assert fitting(FoundrySettings(max_length=2048), 4096).max_length == 2048


def test_checksums_are_those_of_sha256sum_and_read_back() -> None:
    sums = {"model.onnx": "b" * 64, "genai_config.json": "a" * 64}

    text = sums_text(sums)

    assert text == f"{'a' * 64}  genai_config.json\n{'b' * 64}  model.onnx\n"
    assert read_sums(text) == sums


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", "c:\\x", "a\\b", "a//b", ""])
def test_a_checksum_for_a_file_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(BadArtifact, match="no checksum of a file beside it"):
        read_sums(f"{'a' * 64}  {path}\n")


def _cached(cache: Path, place: str, name: object, *files: str) -> Path:
    directory = cache / place
    directory.mkdir(parents=True)
    for file in ("genai_config.json", *files):
        (directory / file).write_text("{}")
    (directory / "inference_model.json").write_text(name if isinstance(name, str) else json.dumps(name))
    return directory


def test_the_older_discovery_lists_what_declares_a_name(tmp_path: Path) -> None:
    ours = _cached(tmp_path, "olivepress/a-1", {"Name": "a:1"})
    deep = _cached(tmp_path, "Publisher/b/v2", {"Name": "b"})
    _cached(tmp_path, "olivepress/c-1", {"Name": "c:1"}, "download.tmp")
    _cached(tmp_path, "olivepress/a-1/nested", {"Name": "nested:1"})

    scan = scan_rules(tmp_path)

    assert scan.directories == {"a:1": (ours,), "b:0": (deep,)}
    assert scan.problems == ()


def test_a_name_declared_twice_is_a_problem(tmp_path: Path) -> None:
    _cached(tmp_path, "x/a-1", {"Name": "a:1"})
    _cached(tmp_path, "y/copy", {"Name": "a:1"})

    scan = scan_rules(tmp_path)

    assert len(scan.directories["a:1"]) == 2
    assert "show only one" in scan.problems[0]


@pytest.mark.parametrize("declared", [{"name": "a:1"}, "{ // comment", {"Name": "a:01"}, {"Name": "a:x"}, []])
def test_a_name_that_the_older_discovery_cannot_use_is_a_problem(tmp_path: Path, declared: object) -> None:
    _cached(tmp_path, "x/a-1", declared)

    scan = scan_rules(tmp_path)

    assert scan.directories == {}
    assert len(scan.problems) == 1
