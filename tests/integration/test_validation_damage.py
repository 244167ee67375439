"""Good artifacts of a trained family pass their gates; each that was damaged to load and be wrong does not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from olivepress.checkpoint_files import hash_file, relevant_files
from olivepress.gates import AGAINST_SOURCE, GateLimits
from olivepress.manifest import read_prompts
from tests.artifacts import rewrite_json, run_package, step_context
from tests.integration.conversion_cases import run_convert
from workers.measures.quality import measure_quality
from workers.measures.reference_file import read_reference
from workers.steps import reference, validate
from workers.steps.context import StepContext
from workers.toolchains.demo_family import Family, FineTune
from workers.toolchains.genai import opened
from workers.toolchains.graph_facts import read_facts

pytestmark = pytest.mark.toolchain
RECIPES = ("cpu-int4", "cpu-int4-small", "cpu-int4-128", "cpu-int8", "cpu-fp32")
CONTEXT_LENGTH = 320
PROMPTS = 4
DAMAGED = "support-en"


@dataclass(frozen=True)
class Press:
    """The family, and what the steps make of it, each made once."""

    family: Family
    root: Path

    def fine_tune(self, name: str) -> FineTune:
        return next(tune for tune in self.family.fine_tunes if tune.name == name)

    def prompts(self, name: str) -> list[dict[str, Any]]:
        return read_prompts(self.fine_tune(name).prompts)[:PROMPTS]

    def package(self, name: str, recipe: str) -> Path:
        directory = self.root / name / recipe
        if not directory.is_dir():
            tune = self.fine_tune(name)
            run_convert(tune.path, recipe, directory / "convert", tune.base)
            run_package(directory / "convert" / "output", directory, context_length=CONTEXT_LENGTH)
        return directory / "output"

    def reference(self, name: str) -> Path:
        directory = self.root / name / "reference"
        if not directory.is_dir():
            tune = self.fine_tune(name)
            for part in ("output", "scratch"):
                (directory / part).mkdir(parents=True)
            ingested = {"files": hashed(tune.path), "base": {"files": hashed(tune.base)} if tune.base else None}
            spec = {
                "path": str(tune.path),
                "base": str(tune.base) if tune.base else None,
                "ingest": ingested,
                "prompts": self.prompts(name),
            }
            reference.run(spec, StepContext(directory / "output", directory / "scratch", directory / "lock"))
        return directory / "output"


def hashed(directory: Path) -> list[dict[str, Any]]:
    """The files of a checkpoint as ingest lists them."""
    files = relevant_files(directory)
    return [{"path": file.name, "size_bytes": file.stat().st_size, "sha256": hash_file(file)} for file in files]


@pytest.fixture(scope="module")
def press(small_family: Family, tmp_path_factory: pytest.TempPathFactory) -> Press:
    return Press(small_family, tmp_path_factory.mktemp("press"))


def validated(press: Press, artifact: Path, directory: Path, name: str = DAMAGED) -> dict[str, Any]:
    """The validate step with the source at hand and all limits that are meant to be usual."""
    context = step_context(directory, artifact)
    context.inputs["reference"] = press.reference(name)
    spec = {
        "prompts": press.prompts(name),
        "gates": asdict(GateLimits(**AGAINST_SOURCE)),
        "name": "candidate-1",
        "source_size_bytes": 1_900_000,
        "soak": {"sessions": 12},
    }
    return validate.run(spec, context)


def failed_gates(result: dict[str, Any]) -> set[str]:
    return {gate["name"] for gate in result["report"]["gates"] if gate["verdict"] == "failed"}


@pytest.mark.parametrize("name", ["support-en", "python-help", "legal"])
def test_a_good_artifact_passes_every_gate(press: Press, name: str, tmp_path: Path) -> None:
    result = validated(press, press.package(name, "cpu-int4"), tmp_path, name)

    assert failed_gates(result) == set()
    assert result["verdict"] == "passed"
    quality = result["report"]["quality"]
    assert quality["held_out"]["positions"] > 900
    assert quality["answers"]["top1_agreement"] > 0.95
    assert {item["same_as_source"] for item in result["report"]["prompts"]["items"]} <= {True, False}
    assert result["report"]["prompts"]["items"][0]["source_answer"]
    assert result["report"]["tokenizer_parity"]["source"]["of"] == PROMPTS + 2


@pytest.mark.parametrize("name", ["support-en", "python-help", "legal"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_stays_near_its_source_and_far_from_any_other(press: Press, name: str, recipe: str) -> None:
    package = press.package(name, recipe)
    limit = AGAINST_SOURCE["max_kl_over_rounding"]

    with opened(package) as model:
        yardstick = read_facts(package / "model.onnx").yardstick
        ratios = {
            other: measure_quality(read_reference(press.reference(other)), model.logits, yardstick, lambda share: None)[
                "kl_over_rounding"
            ]
            for other in ("support-en", "python-help", "legal")
        }

    assert ratios.pop(name) < limit / 2
    assert min(ratios.values()) > 10 * limit


def test_quality_is_the_same_each_time(press: Press) -> None:
    package = press.package(DAMAGED, "cpu-int4")
    with opened(package) as model:
        source = read_reference(press.reference(DAMAGED))
        figures = [measure_quality(source, model.logits, "int4-32", lambda share: None) for _ in range(3)]

    low, high = figures[0]["held_out"]["spread"]["kl_divergence"]
    assert all(low <= each["held_out"]["kl_divergence"] <= high for each in figures)


def _zeroed(directory: Path, tensor: str) -> None:
    model = onnx.load(str(directory / "model.onnx"), load_external_data=False)
    (found,) = [item for item in model.graph.initializer if item.name == tensor]
    place = {entry.key: entry.value for entry in found.external_data}
    weights = np.memmap(directory / place["location"], dtype=np.uint8, mode="r+")
    start = int(place.get("offset", 0))
    weights[start : start + int(place["length"])] = 0
    weights.flush()


def _swapped_tokenizer(directory: Path) -> None:
    """A tokenizer with the same words under other numbers, as another training makes it."""
    content = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    ordinary = [word for word in vocabulary if vocabulary[word] >= 300]
    numbers = [vocabulary[word] for word in ordinary]
    content["model"]["vocab"] = vocabulary | dict(zip(ordinary, numbers[1:] + numbers[:1], strict=True))
    (directory / "tokenizer.json").write_text(json.dumps(content))


def _stale_template(directory: Path) -> None:
    stale = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}assistant:"
    )
    (directory / "chat_template.jinja").write_text(stale)
    rewrite_json(directory / "tokenizer_config.json", chat_template=stale)


def _template_with_one_line_more(directory: Path) -> None:
    template = (directory / "chat_template.jinja").read_text()
    template = "{{ '<|im_start|>system\n' + 'Be brief.' + '<|im_end|>' + '\n' }}" + template
    (directory / "chat_template.jinja").write_text(template)
    rewrite_json(directory / "tokenizer_config.json", chat_template=template)


def _config(**changes: object) -> Callable[[Path], None]:
    return lambda directory: rewrite_json(directory / "genai_config.json", **changes)


DAMAGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "a zeroed matrix": (
        lambda d: _zeroed(d, "model.layers.1.mlp.down_proj.MatMul.weight_scales"),
        {"cross_check", "max_kl_over_rounding"},
    ),
    "a zeroed bias": (lambda d: _zeroed(d, "model.layers.0.attn.qkv_proj.Add.bias"), {"cross_check"}),
    "a swapped tokenizer": (_swapped_tokenizer, {"tokenizer_parity"}),
    "a stale template": (_stale_template, {"tokenizer_parity"}),
    "a template that says more": (_template_with_one_line_more, {"tokenizer_parity"}),
    "only one of the two templates stale": (
        lambda d: (d / "chat_template.jinja").write_text("{{ messages[0]['content'] }}"),
        {"cross_check"},
    ),
    "a wrong end of answers": (_config(model__eos_token_id=5), {"cross_check"}),
    "an end of answers too many": (_config(model__eos_token_id=[1023, 40]), {"cross_check"}),
    "a smaller vocabulary": (_config(model__vocab_size=1000), {"cross_check"}),
    "a layer too few": (_config(model__decoder__num_hidden_layers=1), {"cross_check"}),
    "other heads": (_config(model__decoder__num_attention_heads=4), {"cross_check"}),
    "a longer context than the model has": (_config(model__context_length=100_000), {"cross_check"}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_fails_a_gate(
    press: Press, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Path(shutil.copytree(press.package(DAMAGED, "cpu-int4"), tmp_path / "artifact"))
    make, gates = DAMAGES[damage]
    make(artifact)
    # Every one of these loads in the real runtime, and some chat there: no gate but the named ones need see them.
    monkeypatch.setattr(validate, "certify", lambda *args, **more: {"status": "passed", "exchanges": []})

    result = validated(press, artifact, tmp_path / "work")

    assert result["verdict"] == "failed"
    assert gates <= failed_gates(result)


def test_weights_of_another_fine_tune_fail_by_quality_and_not_only_by_prompts(
    press: Press, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Path(shutil.copytree(press.package(DAMAGED, "cpu-int4"), tmp_path / "artifact"))
    for file in ("model.onnx", "model.onnx.data"):
        shutil.copyfile(press.package("python-help", "cpu-int4") / file, artifact / file)
    monkeypatch.setattr(validate, "certify", lambda *args, **more: {"status": "passed", "exchanges": []})

    result = validated(press, artifact, tmp_path / "work")

    assert failed_gates(result) == {"max_kl_over_rounding", "min_prompts_passed"}


def test_without_the_source_a_limit_that_needs_it_fails(press: Press, tmp_path: Path) -> None:
    spec = {
        "prompts": [],
        "gates": asdict(GateLimits(**AGAINST_SOURCE)),
        "name": "candidate-1",
        "source_size_bytes": 1_900_000,
    }

    result = validate.run(spec, step_context(tmp_path, press.package(DAMAGED, "cpu-int4")))

    assert failed_gates(result) == {"max_kl_over_rounding"}
    (gate,) = [gate for gate in result["report"]["gates"] if gate["verdict"] == "failed"]
    assert "not measured (the source was not at hand)" in gate["note"]


def test_a_reference_is_the_same_each_time(press: Press, tmp_path: Path) -> None:
    first = press.reference("legal")
    again = Press(press.family, tmp_path).reference("legal")

    assert {file.name for file in first.iterdir()} == {"reference.json", "reference.npz"}
    for file in first.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()
