"""Model directories that strangers made: taken over by file, or refused with what is wrong; real builder output."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from olivepress.checkpoints.files import hash_file
from olivepress.delivery.archive import write_archive
from olivepress.errors import BadArtifact, BadCheckpoint, CheckpointChanged, PathNotAllowed
from olivepress.foundry.inference_model import sums_text
from olivepress.jobs import JobKind, StepKind
from olivepress.recipes.recipe import recipe_named
from olivepress.steps import JobFacts, SourcePlace, StepResult
from olivepress.store import DirectoryStore
from tests.artifacts import bytes_of, converted, rewrite_json
from tests.checkpoints import tiny_checkpoint
from workers.identity import CheckpointWatch
from workers.steps import ingest, model_directory, package
from workers.steps.context import StepContext

pytestmark = pytest.mark.toolchain
MODEL_FILES = {
    "genai_config.json",
    "model.onnx",
    "model.onnx.data",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the model builder wrote; not to be changed."""
    return converted(tmp_path_factory.mktemp("built"))


@pytest.fixture
def given(built: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(built, tmp_path / "roots" / "given"))


def taken(directory: Path, **told: Any) -> tuple[dict[str, Any], Path]:
    """The result of the ingest step, and what it took over."""
    work = directory.parent.parent / "work"
    shutil.rmtree(work, ignore_errors=True)
    for name in ("output", "scratch"):
        (work / name).mkdir(parents=True)
    spec = {"path": str(directory), "base": None, "roots": [str(directory.parent)], "is_model": True, **told}
    return ingest.run(spec, StepContext(work / "output", work / "scratch", work / "lock")), work / "output"


def weights_in(place: str) -> Callable[[Path], None]:
    """The damage: the graph says that its weights are there."""

    def damage(directory: Path) -> None:
        model = onnx.load(str(directory / "model.onnx"), load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = place
        (directory / "model.onnx").write_bytes(model.SerializeToString())

    return damage


def foreign_operator(directory: Path) -> None:
    model = onnx.load(str(directory / "model.onnx"), load_external_data=False)
    model.graph.node[0].domain = "com.example"
    (directory / "model.onnx").write_bytes(model.SerializeToString())


def pipe(directory: Path) -> None:
    (directory / "model.onnx").unlink()
    os.mkfifo(directory / "model.onnx")


def link_out(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").symlink_to("/etc/hostname")


def cut_off(directory: Path) -> None:
    data = directory / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1000])


def larger_vocabulary(directory: Path) -> None:
    """The tokenizer of another model: it has tokens that this one has no row for."""
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": 40_000, "content": "<|other|>"})
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


def wrong_sums(directory: Path) -> None:
    (directory / "SHA256SUMS").write_text(sums_text({"model.onnx.data": "0" * 64}))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no graph": (lambda given: (given / "model.onnx").unlink(), r"has no model\.onnx, which genai_config\.json names"),
    "no weights": (
        lambda given: (given / "model.onnx.data").unlink(),
        r"has no model\.onnx\.data, which holds weights",
    ),
    "no tokenizer": (lambda given: (given / "tokenizer.json").unlink(), r"has no usable tokenizer\.json"),
    "no chat template": (lambda given: (given / "chat_template.jinja").unlink(), "no chat template"),
    "weights cut off": (cut_off, r"model\.onnx\.data ends at .* and the graph reads"),
    "another vocabulary": (
        lambda given: rewrite_json(given / "genai_config.json", model__vocab_size=400),
        r"gives 512 logits and genai_config\.json has a vocabulary of 400; get the directory again",
    ),
    "no vocabulary": (
        lambda given: rewrite_json(given / "genai_config.json", model__vocab_size="<absent>"),
        "no usable vocab_size",
    ),
    "a stop token that is ordinary text": (
        lambda given: rewrite_json(given / "genai_config.json", model__eos_token_id=5),
        "ends answers with token 5, which the tokenizer has for ordinary text",
    ),
    "another number of layers": (
        lambda given: rewrite_json(given / "genai_config.json", model__decoder__num_hidden_layers=9),
        r"the graph has 2 layers and genai_config\.json has 9",
    ),
    "the tokenizer of another model": (larger_vocabulary, "has token 40000 and the model only 512 rows"),
    "another file than its checksum": (wrong_sums, r"model\.onnx\.data is not the file that SHA256SUMS"),
    "a missing file of the checksums": (
        lambda given: (given / "SHA256SUMS").write_text(sums_text({"gone.json": "0" * 64})),
        r"SHA256SUMS names gone\.json, which is missing",
    ),
    "a graph that is none": (
        lambda given: (given / "model.onnx").write_bytes(b"\xff" * 100),
        r"model\.onnx is no ONNX model",
    ),
    "a pointer of Git LFS": (
        lambda given: (given / "model.onnx.data").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "Git LFS pointer",
    ),
    "an operator of its own": (foreign_operator, "operators of com.example"),
    "a pipe": (pipe, "is no regular file"),
    "a link out": (link_out, "a link that leads out"),
    "weights upwards": (weights_in("../secret"), "not inside its directory"),
    "weights at an absolute place": (weights_in("/etc/hostname"), "not inside its directory"),
    "weights in the tokenizer": (weights_in("tokenizer.json"), r"weights are in tokenizer\.json"),
    "weights in the config": (weights_in("genai_config.json"), r"weights are in genai_config\.json"),
    "native code": (
        lambda given: rewrite_json(
            given / "genai_config.json", model__decoder__session_options__custom_ops_library="x"
        ),
        "native code",
    ),
    "a huge config": (
        lambda given: (given / "genai_config.json").write_bytes(b" " * 5_000_000),
        "far more than such a file has",
    ),
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_what_cannot_be_used_is_refused_with_the_reason(given: Path, what: str) -> None:
    damage, said = REFUSED[what]
    damage(given)
    with pytest.raises((BadCheckpoint, PathNotAllowed), match=said):
        taken(given)


def test_the_model_files_are_taken_and_nothing_else(given: Path) -> None:
    (given / "README.md").write_text("hello")
    (given / "evil.so").write_bytes(b"\x7fELF")
    (given / "inference_model.json").write_text('{"Name": "theirs-int4:7"}')
    result, output = taken(given)
    files = bytes_of(output)
    assert set(files) == MODEL_FILES
    assert files == {name: (given / name).read_bytes() for name in MODEL_FILES}
    assert (result["kind"], result["family"], result["architecture"], result["precision"]) == (
        "model",
        "qwen2",
        "qwen2",
        "int4",
    )
    assert result["size_bytes"] == sum(map(len, files.values()))
    assert result["declared_name"] == "theirs-int4:7"
    assert result["notes"][0] == "it calls itself theirs-int4:7"
    assert "README.md, evil.so" in result["notes"][1]


def test_the_same_content_has_the_same_digest_wherever_it_lies(given: Path) -> None:
    first, _ = taken(given)
    moved = given.rename(given.parent / "moved")
    assert taken(moved)[0]["checkpoint_digest"] == first["checkpoint_digest"]
    rewrite_json(moved / "genai_config.json", search__top_p=0.5)
    assert taken(moved)[0]["checkpoint_digest"] != first["checkpoint_digest"]


def test_the_precision_is_the_graphs(tmp_path: Path) -> None:
    for precision in ("int8", "fp32"):
        assert taken(converted(tmp_path / "roots" / precision, precision=precision))[0]["precision"] == precision


def test_a_family_that_is_said_to_be_another_is_taken(given: Path) -> None:
    assert taken(given, family="qwen2-coder")[0]["family"] == "qwen2-coder"


def test_its_own_settings_go_into_the_package(given: Path, tmp_path: Path) -> None:
    search = {"search__do_sample": True, "search__temperature": 0.3, "search__max_length": 100}
    rewrite_json(given / "genai_config.json", **search)
    result, output = taken(given)
    target = tmp_path / "package"
    target.mkdir()
    spec = {"foundry": result["foundry"], "context_length": result["context_length"], "family": "qwen2"}
    package.run(spec, StepContext(target, tmp_path, tmp_path / "lock", {"artifact": output}))
    written = json.loads((target / "genai_config.json").read_text())["search"]
    assert (written["do_sample"], written["temperature"], written["max_length"]) == (True, 0.3, 100)


def test_a_directory_outside_the_roots_is_refused(given: Path, tmp_path: Path) -> None:
    with pytest.raises(PathNotAllowed):
        taken(given, roots=[str(tmp_path / "other")])


def test_a_link_that_stays_under_the_roots_is_followed(given: Path) -> None:
    blob = given.parent / "blob"
    (given / "model.onnx.data").rename(blob)
    (given / "model.onnx.data").symlink_to(blob)
    _, output = taken(given)
    assert not (output / "model.onnx.data").is_symlink()
    assert (output / "model.onnx.data").read_bytes() == blob.read_bytes()


def test_files_that_change_meanwhile_are_noticed(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = model_directory.check_format

    def change(directory: Path) -> None:
        (given / "model.onnx.data").write_bytes(b"another")
        check(directory)

    monkeypatch.setattr(model_directory, "check_format", change)
    with pytest.raises(CheckpointChanged):
        taken(given)


def exported(built: Path, file: Path) -> Path:
    """The directory as the file of an exported version."""
    files = Path(shutil.copytree(built, file.parent.parent / "exported"))
    (files / "inference_model.json").write_text('{"Name": "theirs-int4:7"}')
    (files / "SHA256SUMS").write_text(sums_text({path: hash_file(files / path) for path in bytes_of(files)}))
    manifest = DirectoryStore(file.parent.parent / "their-store").put_directory(files)
    version = {
        "model": "theirs-int4",
        "number": 7,
        "version": "theirs-int4:7",
        "recipe": "cpu-int4",
        "precision": "int4",
        "family": "qwen2",
        "size_bytes": manifest.size_bytes,
        "package_digest": "a" * 64,
        "artifact_digest": manifest.digest,
        "report": {},
        "provenance": {},
    }
    write_archive(file, version, manifest, files)
    return file


def test_an_exported_version_is_taken_over_as_its_directory_is(given: Path) -> None:
    file = exported(given, given.parent / "theirs.tar")
    result, output = taken(file)
    assert set(bytes_of(output)) == MODEL_FILES
    assert result["checkpoint_digest"] == taken(given)[0]["checkpoint_digest"]
    assert result["declared_name"] == "theirs-int4:7"


def test_a_damaged_export_is_refused(given: Path) -> None:
    file = exported(given, given.parent / "theirs.tar")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(io.BytesIO(content).getvalue())
    with pytest.raises(BadArtifact, match="damaged"):
        taken(file)


def test_of_the_source_it_is_noted_what_its_own_ingest_would_find(given: Path) -> None:
    checkpoint = tiny_checkpoint(given.parent / "support")
    result, _ = taken(given, source={"path": str(checkpoint), "base_path": None})
    alone = ingest.run(
        {"path": str(checkpoint), "base": None, "roots": [str(given.parent)]},
        StepContext(given.parent, given.parent.parent / "work" / "scratch", given.parent / "lock"),
    )
    assert result["source"] == alone
    assert result["kind"] == "model"


def test_a_source_that_cannot_be_used_is_refused(given: Path) -> None:
    with pytest.raises(BadCheckpoint, match="it was converted already"):
        taken(given, source={"path": str(given), "base_path": None})


def test_a_source_that_changed_since_it_was_ingested_is_noticed(given: Path) -> None:
    checkpoint = tiny_checkpoint(given.parent / "support")
    job = JobFacts(
        1,
        str(given),
        None,
        recipe_named("cpu-fp32"),
        prompts=[],
        prompts_digest=None,
        kind=JobKind.IMPORT,
        made_from=SourcePlace(str(checkpoint)),
    )
    watch = CheckpointWatch(StepKind.INGEST, job, {})
    watch.check()
    later = CheckpointWatch(StepKind.REFERENCE, job, {StepKind.INGEST: StepResult(watch.facts())})
    later.check()
    with (checkpoint / "model.safetensors").open("ab") as data:
        data.write(b"more")
    with pytest.raises(CheckpointChanged, match="changed after they were submitted"):
        later.check()


def test_a_weights_file_that_changed_since_it_was_ingested_is_another_checkpoint(given: Path) -> None:
    """A model's weights count for what its ingest is remembered by, not only a checkpoint's files."""
    job = JobFacts(1, str(given), None, recipe_named("cpu-fp32"), prompts=[], prompts_digest=None, kind=JobKind.IMPORT)
    watch = CheckpointWatch(StepKind.INGEST, job, {})
    watch.check()
    before = watch.facts()
    with (given / "model.onnx.data").open("ab") as data:
        data.write(b"more")
    with pytest.raises(CheckpointChanged, match="changed after they were submitted"):
        watch.check()
    again = CheckpointWatch(StepKind.INGEST, job, {})
    again.check()
    assert again.facts() != before
