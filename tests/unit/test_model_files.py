"""A model directory from elsewhere: which one is meant, what its config may say, what names the state of its files."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from olivepress.checkpoints.model_files import (
    declared_name,
    find_model_directory,
    inside,
    model_identity,
    parse_config,
    settings_of,
)
from olivepress.errors import BadCheckpoint

CONFIG: dict[str, Any] = {
    "model": {"type": "qwen2", "context_length": 4096, "decoder": {"filename": "model.onnx"}, "vocab_size": 512},
    "search": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1, "max_length": 2048},
}


def written(directory: Path, *names: str) -> Path:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("{}")
    return directory


def changed(**changes: Any) -> bytes:
    """The config with other values: `a__b` is b inside a."""
    config = json.loads(json.dumps(CONFIG))
    for key, value in changes.items():
        *outer, last = key.split("__")
        place = config
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    return json.dumps(config).encode()


def test_the_model_of_an_olive_output_or_a_cache_entry_is_found_below(tmp_path: Path) -> None:
    written(tmp_path, "output_model/model/genai_config.json", "output_model/model_config.json")
    assert find_model_directory(tmp_path) == tmp_path / "output_model" / "model"


def test_a_directory_that_is_a_model_is_meant_itself(tmp_path: Path) -> None:
    written(tmp_path, "genai_config.json", "older/genai_config.json")
    assert find_model_directory(tmp_path) == tmp_path


def test_a_directory_without_a_model_or_with_several_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"no genai_config\.json.*olivepress submit DIR"):
        find_model_directory(written(tmp_path / "none", "config.json"))
    with pytest.raises(BadCheckpoint, match=r"holds 2 models \(a, b\); import them one by one"):
        find_model_directory(written(tmp_path / "two", "a/genai_config.json", "b/genai_config.json"))


def test_links_to_directories_are_not_followed(tmp_path: Path) -> None:
    written(tmp_path / "elsewhere", "genai_config.json")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadCheckpoint, match="has no"):
        find_model_directory(tmp_path / "given")


def test_a_usual_config_is_taken(tmp_path: Path) -> None:
    assert parse_config(json.dumps(CONFIG).encode()) == CONFIG
    assert parse_config(b"\xef\xbb\xbf" + json.dumps(CONFIG).encode()) == CONFIG


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", "does not describe a text model"),
        (b"\xff\xfe", "does not describe a text model"),
        (b"[" * 100_000, "does not describe a text model"),
        (changed(model__type="../../x"), "does not describe a text model"),
        (changed(model__type=["qwen2"]), "does not describe a text model"),
        (changed(search__top_p=1.0)[:-3] + b'NaN"}}', "does not describe a text model"),
        (changed(model__context_length=0), "no context_length"),
        (changed(model__context_length=10**400), "no context_length"),
        (changed(model__context_length=True), "no context_length"),
        (changed(model__vision={"filename": "vision.onnx"}), r"several parts \(vision\)"),
        (changed(model__decoder__pipeline=[]), r"several parts \(pipeline\)"),
        (changed(model__decoder__filename="/etc/passwd"), "names '/etc/passwd'.*outside the model's directory"),
        (changed(model__decoder__filename="a/../../model.onnx"), "outside the model's directory"),
        (changed(model__decoder__filename="C:\\models\\model.onnx"), "outside the model's directory"),
        (changed(model__decoder__session_options__custom_ops_library="evil.so"), "loads native code"),
        (changed(model__decoder__session_options__enable_profiling="trace"), "makes the engine write files"),
        (changed(model__decoder__session_options__optimized_model_filepath="/tmp/x"), "outside the model's directory"),
        (
            changed(model__decoder__session_options__provider_options=[{"qnn": {"backend_path": "evil.so"}}]),
            "loads native code",
        ),
    ],
)
def test_a_config_that_no_engine_may_be_given_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(BadCheckpoint, match=said):
        parse_config(content)


@pytest.mark.parametrize("name", ["", ".", "/model.data", "../model.data", "a/../../b", "a\\b", "C:/a", "a\0b"])
def test_a_name_of_weights_outside_is_refused(name: str) -> None:
    with pytest.raises(BadCheckpoint, match="not inside its directory"):
        inside(name)


def test_a_name_of_weights_inside_is_taken() -> None:
    assert str(inside("weights/model.onnx.data")) == "weights/model.onnx.data"


def test_its_own_settings_are_kept_and_greedy_stays_greedy() -> None:
    assert settings_of(CONFIG["search"], 4096) == {
        "max_length": 2048,
        "temperature": 0.7,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
    }
    assert settings_of({"temperature": 0.7, "top_p": "x", "max_length": 1e300}, 4096) == {
        "max_length": 4096,
        "temperature": 0.0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
    }


def test_the_identity_changes_with_any_file_and_with_nothing_else(tmp_path: Path) -> None:
    written(tmp_path, "genai_config.json", "weights/model.onnx.data")
    before = model_identity(tmp_path)
    assert before is not None
    assert model_identity(tmp_path) == before
    assert model_identity(tmp_path, settled=True) is None
    data = tmp_path / "weights" / "model.onnx.data"
    state = data.stat()
    data.write_text("[]")
    os.utime(data, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert model_identity(tmp_path) != before


def test_what_is_not_there_has_no_identity(tmp_path: Path) -> None:
    assert model_identity(tmp_path / "nothing") is None


def test_a_model_that_names_itself_is_known_by_that(tmp_path: Path) -> None:
    assert declared_name(tmp_path) is None
    (tmp_path / "inference_model.json").write_text('{"Name": "support-en-int4:3"}')
    assert declared_name(tmp_path) == "support-en-int4:3"
    (tmp_path / "inference_model.json").write_text('{"Name": "a\\u0007"}')
    assert declared_name(tmp_path) is None
