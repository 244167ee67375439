"""The examples that people copy are accepted as they are."""

from pathlib import Path

from olivepress.manifest import load_manifest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_manifest_loads_with_its_prompts() -> None:
    manifest = load_manifest(EXAMPLES / "batch.yaml")
    assert [entry.name for entry in manifest.checkpoints] == ["support-en", None]
    assert manifest.prompts is not None
    assert len(manifest.prompts) == 3
