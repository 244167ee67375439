"""The real Foundry Local runtime: certificates, installs that it lists and loads, and what becomes of its crashes."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from olivepress.errors import BadArtifact
from olivepress.foundry import runtime as foundry_runtime
from olivepress.foundry.cache import install_into_cache
from olivepress.foundry.index import catalog_entry
from olivepress.foundry.inference_model import inference_model_json, sums_text
from olivepress.foundry.runtime import certify, chat
from olivepress.recipes.recipe import FoundrySettings
from tests.artifacts import converted, rewrite_json
from workers.toolchains.genai import opened

pytestmark = pytest.mark.toolchain

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
INDEX = "foundry.local.modelinfo.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted tiny model; not to be changed."""
    return converted(tmp_path_factory.mktemp("model"))


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where the runtime may write."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


def _published(model: Path, directory: Path, model_id: str) -> Path:
    """The model as publish leaves it."""
    shutil.copytree(model, directory)
    name, number = model_id.split(":")
    content = inference_model_json(
        model=name, number=int(number), description="", prompt_template=None, foundry=FoundrySettings()
    )
    (directory / "inference_model.json").write_text(json.dumps(content))
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}
    (directory / "SHA256SUMS").write_text(sums_text(sums))
    return directory


def test_a_model_that_chats_in_the_runtime_is_certified(model: Path, scratch: Path) -> None:
    certificate = certify(model, "tiny-int4", [QUESTION], scratch)

    assert certificate["problem"] is None
    assert certificate["status"] == "passed"
    assert certificate["name"] == "tiny-int4:1"
    assert set(certificate["runtime"]) == {"foundry-local-sdk", "onnxruntime", "onnxruntime-genai-core"}
    assert [exchange["mode"] for exchange in certificate["exchanges"]] == ["session", "stream", "web"]
    assert {exchange["question"] for exchange in certificate["exchanges"]} == {QUESTION[0]["content"]}
    assert len({exchange["answer"] for exchange in certificate["exchanges"]}) == 1


def test_the_runtime_answers_what_the_engine_answers(model: Path, scratch: Path) -> None:
    certificate = certify(model, "tiny-int4", [QUESTION], scratch)

    with opened(model) as engine:
        own = engine.generate(engine.encode(engine.prompt(QUESTION)), foundry_runtime.CERTIFICATE_TOKENS).text
    assert certificate["exchanges"][0]["answer"] == own


def test_the_runtime_is_cut_off_from_the_network_where_the_system_permits(model: Path, scratch: Path) -> None:
    certificate = certify(model, "tiny-int4", [], scratch)

    assert certificate["network"] == ("none" if os.geteuid() == 0 else certificate["network"])


def test_a_context_that_leaves_no_room_for_default_answers_is_noted(copy: Path, scratch: Path) -> None:
    rewrite_json(copy / "genai_config.json", model__context_length=2048, search__max_length=2048)

    certificate = certify(copy, "tiny-int4", [QUESTION], scratch)

    assert certificate["status"] == "passed"
    assert "every request must set it" in certificate["notes"][0]


def test_a_model_that_says_nothing_at_all_gets_no_certificate(copy: Path, scratch: Path) -> None:
    # Special tokens are not written; here every token is one.
    flags = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    vocabulary = json.loads((copy / "tokenizer.json").read_text())["model"]["vocab"]
    added = [{"id": number, "content": text} | flags for text, number in vocabulary.items()]
    rewrite_json(copy / "tokenizer.json", added_tokens=added)

    certificate = certify(copy, "tiny-int4", [QUESTION], scratch)

    assert certificate["status"] == "failed"
    assert "answered none of 2 questions with any text" in certificate["problem"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: rewrite_json(d / "genai_config.json", model__surprise=1), "Unknown value"),
        (lambda d: (d / "genai_config.json").write_text("{"), "genai_config.json"),
        (lambda d: (d / "genai_config.json").unlink(), "genai_config.json"),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "loading the model"),
        (lambda d: (d / "chat_template.jinja").unlink(), "Empty chat template"),
        (lambda d: (d / "model.onnx").unlink(), "model.onnx"),
        (lambda d: os.truncate(d / "model.onnx.data", 1000), "out of bounds"),
    ],
    ids=[
        "unknown key",
        "broken config",
        "no config",
        "no tokenizer",
        "empty tokenizer",
        "no template",
        "no graph",
        "weights cut off",
    ],
)
def test_a_damaged_model_gets_no_certificate_and_the_reason(
    copy: Path, scratch: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(copy)

    certificate = certify(copy, "tiny-int4", [QUESTION], scratch)

    assert certificate["status"] == "failed"
    assert certificate["problem"].startswith("the Foundry Local runtime failed while ")
    assert words in certificate["problem"]
    assert str(copy) not in certificate["problem"]


def runtimes() -> list[psutil.Process]:
    """Processes that this test started; what a test run shares, such as its database server, was there before."""
    return [child for child in psutil.Process().children() if foundry_runtime.RUNTIME.module in child.cmdline()]


def test_a_runtime_that_is_killed_ends_alone(model: Path, scratch: Path) -> None:
    def kill_it(phase: str, share: float) -> None:
        if phase == "starting":
            (child,) = runtimes()
            child.kill()

    certificate = certify(model, "tiny-int4", [QUESTION], scratch, on_progress=kill_it)

    assert certificate["status"] == "failed"
    assert "(SIGKILL) while starting" in certificate["problem"]
    assert runtimes() == []
    assert certify(model, "tiny-int4", [QUESTION], scratch)["status"] == "passed"


def test_a_runtime_that_hangs_is_stopped(model: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foundry_runtime, "RUNTIME", replace(foundry_runtime.RUNTIME, time_limit_s=0.01))

    certificate = certify(model, "tiny-int4", [QUESTION], scratch)

    assert certificate["status"] == "failed"
    assert "did not answer within" in certificate["problem"]
    assert runtimes() == []


def test_the_runtime_writes_nothing_outside_its_scratch_directory(model: Path, scratch: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (model, Path.home(), *model.iterdir())}

    certify(model, "tiny-int4", [], scratch)

    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_entry_of_an_install_is_the_one_that_the_runtime_writes_itself(model: Path, scratch: Path) -> None:
    certify(model, "tiny-int4", [], scratch)

    (written,) = json.loads(next(scratch.rglob(INDEX)).read_text())["models"]
    created_at = written["model_info"]["createdAt"]
    assert catalog_entry("tiny-int4:1", model, created_at=created_at) == written


def test_an_installed_version_is_listed_loaded_and_chats(model: Path, tmp_path: Path) -> None:
    source = _published(model, tmp_path / "source", "support-en-int4:2")
    cache = tmp_path / "cache"
    install_into_cache(source, cache, "support-en-int4", 2)

    exchanges = chat(cache, "support-en-int4:2", ["What is the capital of France?", "Are you sure?"], max_tokens=8)

    assert [exchange.question for exchange in exchanges] == ["What is the capital of France?", "Are you sure?"]
    assert all(exchange.answer for exchange in exchanges)


def test_an_install_and_what_the_runtime_registered_live_in_one_cache(
    model: Path, tmp_path: Path, scratch: Path
) -> None:
    certify(model, "by-hand", [], scratch)
    cache = next(scratch.rglob(INDEX)).parent

    install_into_cache(_published(model, tmp_path / "source", "support-en-int4:1"), cache, "support-en-int4", 1)

    for model_id in ("by-hand:1", "support-en-int4:1"):
        assert chat(cache, model_id, ["Hello?"], max_tokens=4)[0].answer


def test_a_version_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="lists no model nobody:1 in this cache; install it first"):
        chat(tmp_path, "nobody:1", ["Hello?"])
