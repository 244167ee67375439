"""The examples that people copy are accepted as they are."""

from pathlib import Path

from olivepress.manifest import inline_recipe, load_manifest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_of_a_ladder_loads_with_its_recipes_in_order() -> None:
    manifest = load_manifest(EXAMPLES / "ladder.yaml")
    assert manifest.ladder is not None
    names = [entry if isinstance(entry, str) else entry["name"] for entry in manifest.ladder]
    assert names == ["coarse-int4", "fine-int4", "int8", "cpu-fp16"]


def test_the_example_manifest_loads_with_its_prompts() -> None:
    manifest = load_manifest(EXAMPLES / "batch.yaml")
    assert [entry.name for entry in manifest.checkpoints] == ["support-en", None]
    assert manifest.prompts is not None
    assert len(manifest.prompts) == 3


def test_the_example_of_quantization_loads_with_its_text_and_one_conversion_for_two_recipes() -> None:
    manifest = load_manifest(EXAMPLES / "quantized.yaml")
    recipes = [inline_recipe(entry) for entry in manifest.recipes if isinstance(entry, dict)]
    first, second, calibrated = recipes
    assert first.build_options() == second.build_options()
    assert [recipe.quantizes for recipe in recipes] == ["onnx", "onnx", "checkpoint"]
    assert calibrated.needs_calibration
    assert manifest.calibration is not None
    assert len(manifest.calibration) == 12
