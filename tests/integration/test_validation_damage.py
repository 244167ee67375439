"""Good artifacts of a trained family pass their gates; each that was damaged to load and be wrong does not."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from olivepress.gates import GateLimits
from tests.artifacts import rewrite_json, step_context
from tests.proof.damages import BASE, BOS, DAMAGES, Others
from tests.proof.press import PROMPTS, Press, Source, failed_gates
from workers.measures.cross_check import cross_check
from workers.measures.quality import measure_quality
from workers.measures.reference_file import read_reference
from workers.measures.tokenizer_agreement import FRAMED_ALONE, SAMPLES
from workers.steps import validate
from workers.toolchains.demo_family import Family
from workers.toolchains.genai import opened
from workers.toolchains.graph_facts import read_facts

pytestmark = pytest.mark.toolchain
RECIPES = ("cpu-int4", "cpu-int4-small", "cpu-int4-128", "cpu-int8", "cpu-fp32")
FINE_TUNES = ("support-en", "python-help", "legal")
DAMAGED = "support-en"
# One or two of each kind; the rest, on other models and with the certificate, in `make proof`.
VALIDATED = (
    "a zeroed matrix",
    "a matrix 1.1 times as large",
    "weights of another fine-tune",
    "a swapped tokenizer",
    "two words of the tokenizer exchanged",
    "a stale template",
    "a template that says more",
    "a wrong end of answers",
    "a larger vocabulary",
    "a layer too few",
    "an absurd repetition penalty",
    "the caches of two layers exchanged",
    "a template that drops the system's words",
    "a tokenizer that does not normalize",
)


@pytest.fixture(scope="module")
def press(tmp_path_factory: pytest.TempPathFactory) -> Press:
    return Press(tmp_path_factory.mktemp("press"))


@pytest.fixture
def source(press: Press, small_family: Family) -> Callable[[str], Source]:
    """A checkpoint of the family by its name."""
    return lambda name: press.of_family(small_family, name)


@pytest.fixture
def others(press: Press, source: Callable[[str], Source]) -> Others:
    """Relatives of the model that is damaged."""
    return Others(*(press.package(source(name), "cpu-int4") for name in ("python-help", "base")))


@pytest.mark.parametrize("name", FINE_TUNES)
def test_a_good_artifact_passes_every_gate(
    press: Press, source: Callable[[str], Source], name: str, tmp_path: Path
) -> None:
    result = press.validate(source(name), press.package(source(name), "cpu-int4"), tmp_path)

    assert failed_gates(result) == set()
    assert result["verdict"] == "passed"
    quality = result["report"]["quality"]
    assert quality["held_out"]["positions"] > 900
    assert quality["answers"]["top1_agreement"] > 0.95
    assert {item["same_as_source"] for item in result["report"]["prompts"]["items"]} <= {True, False}
    assert result["report"]["prompts"]["items"][0]["source_answer"]
    assert result["report"]["tokenizer_parity"]["source"]["of"] == PROMPTS + len(SAMPLES) + len(FRAMED_ALONE)


@pytest.mark.parametrize("name", FINE_TUNES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_stays_near_its_source_and_far_from_any_other(
    press: Press, source: Callable[[str], Source], name: str, recipe: str
) -> None:
    package = press.package(source(name), recipe)
    limit = GateLimits().max_kl_over_rounding or 0.0

    with opened(package) as model:
        yardstick = read_facts(package / "model.onnx").yardstick
        said = {other: read_reference(press.reference(source(other))) for other in FINE_TUNES}
        ratios = {
            other: measure_quality(each, model.logits, yardstick, lambda share: None)["kl_over_rounding"]
            for other, each in said.items()
        }

    assert ratios.pop(name) < limit / 2
    assert min(ratios.values()) > 10 * limit


def test_quality_is_the_same_each_time(press: Press, source: Callable[[str], Source]) -> None:
    package = press.package(source(DAMAGED), "cpu-int4")
    with opened(package) as model:
        said = read_reference(press.reference(source(DAMAGED)))
        figures = [measure_quality(said, model.logits, "int4-32", lambda share: None) for _ in range(3)]

    low, high = figures[0]["held_out"]["spread"]["kl_divergence"]
    assert all(low <= each["held_out"]["kl_divergence"] <= high for each in figures)


@pytest.mark.parametrize("damage", VALIDATED)
def test_a_damaged_artifact_fails_its_gate(
    press: Press,
    source: Callable[[str], Source],
    others: Others,
    damage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact = press.copy(source(DAMAGED), "cpu-int4", tmp_path / "artifact")
    DAMAGES[damage].change(artifact, others)
    # Every one of these loads in the real runtime, and most chat there: no gate but the named one need see them.
    monkeypatch.setattr(validate, "certify", lambda *args, **more: {"status": "passed", "exchanges": []})

    result = press.validate(source(DAMAGED), artifact, tmp_path / "work")

    assert result["verdict"] == "failed"
    assert DAMAGES[damage].gate in failed_gates(result)


FOUND_BY_FILES = [name for name, damage in DAMAGES.items() if damage.gate == "cross_check"] + [
    "weights of another fine-tune",
    "the weights of the base",
    "the head of another fine-tune",
]


@pytest.mark.parametrize("recipe", ["cpu-int4-128", "cpu-int8", "cpu-fp16"])
def test_the_files_of_a_good_artifact_agree_with_its_source_in_every_precision(
    press: Press, source: Callable[[str], Source], recipe: str
) -> None:
    found = cross_check(press.package(source("legal"), recipe), read_reference(press.reference(source("legal"))))

    assert (found["status"], found["problem"]) == ("passed", None)


@pytest.mark.parametrize("damage", FOUND_BY_FILES)
def test_what_contradicts_the_source_is_found_in_the_coarsest_rounding_too(
    press: Press, source: Callable[[str], Source], damage: str, tmp_path: Path
) -> None:
    recipe = "cpu-int4-128"
    artifact = press.copy(source("legal"), recipe, tmp_path / "artifact")
    relatives = Others(*(press.package(source(name), recipe) for name in ("python-help", "base")))

    DAMAGES[damage].change(artifact, relatives)

    found = cross_check(artifact, read_reference(press.reference(source("legal"))))
    assert found["status"] == "failed"


def test_experts_whose_biases_the_builder_invents_are_sound(press: Press) -> None:
    source = press.random("lfm2_moe")

    found = cross_check(press.package(source, "cpu-int4"), read_reference(press.reference(source)))

    assert (found["status"], found["problem"]) == ("passed", None)


def test_an_end_of_turn_that_does_not_end_answers_is_named(
    press: Press, source: Callable[[str], Source], tmp_path: Path
) -> None:
    artifact = press.copy(source(DAMAGED), "cpu-int4", tmp_path / "artifact")
    said = read_reference(press.reference(source(DAMAGED)))
    # As of Llama 3: the config ends texts, and another token ends turns.
    text_end, turn_end = 1021, said.facts["turn_end_id"]
    said = replace(said, facts=said.facts | {"stop_ids": [[text_end], [text_end, turn_end]]})
    rewrite_json(artifact / "genai_config.json", model__eos_token_id=[text_end])

    found = cross_check(artifact, said)

    assert f"does not end answers with {turn_end}, as the source's chat template does" in found["problem"]


def test_every_damage_says_what_it_needs() -> None:
    assert {damage.needs for damage in DAMAGES.values()} == {None, "fine_tune", BASE, BOS}


def test_weights_that_a_pass_may_have_moved_are_told_and_fail_nothing(
    press: Press, source: Callable[[str], Source], others: Others, tmp_path: Path
) -> None:
    artifact = press.copy(source(DAMAGED), "cpu-int4", tmp_path / "artifact")
    DAMAGES["a matrix 1.1 times as large"].change(artifact, others)

    found = cross_check(artifact, read_reference(press.reference(source(DAMAGED))), may_move_weights=True)

    assert found["status"] == "passed"
    assert any("down_proj' is 1.1" in note for note in found["notes"])


def test_without_the_source_a_limit_that_needs_it_binds_nothing(
    press: Press, source: Callable[[str], Source], tmp_path: Path
) -> None:
    spec: dict[str, Any] = {
        "prompts": [],
        "gates": asdict(GateLimits(min_top1_agreement=0.5)),
        "name": "candidate-1",
        "source_size_bytes": None,
    }

    result = validate.run(spec, step_context(tmp_path, press.package(source(DAMAGED), "cpu-int4")))

    verdicts = {gate["name"]: gate["verdict"] for gate in result["report"]["gates"]}
    assert (verdicts["max_kl_over_rounding"], verdicts["min_top1_agreement"]) == ("not_binding", "not_binding")
    assert result["report"]["has_source"] is False


def test_a_reference_is_the_same_each_time(press: Press, source: Callable[[str], Source], tmp_path: Path) -> None:
    first = press.reference(source("legal"))
    again = Press(tmp_path).reference(source("legal"))

    assert {file.name for file in first.iterdir()} == {"reference.json", "reference.npz"}
    for file in first.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()
