"""Two chat templates that differ: refused with both shown, unless the manifest chooses one."""

import json
from pathlib import Path

import pytest

from olivepress.checkpoints.files import CHAT_TEMPLATE as TEMPLATE_FILE
from olivepress.checkpoints.files import TOKENIZER_CONFIG
from olivepress.errors import BadCheckpoint
from tests.artifacts import converted
from tests.checkpoints import CHAT_TEMPLATE, tiny_checkpoint
from tests.integration.ingest_cases import edit_json
from workers.steps import ingest, package
from workers.steps.context import StepContext

pytestmark = pytest.mark.toolchain

OTHER = CHAT_TEMPLATE.replace("<|im_start|>", "<|im_start|>the ")
WRITTEN = {TOKENIZER_CONFIG: CHAT_TEMPLATE, TEMPLATE_FILE: OTHER}


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    """A checkpoint with a chat template in each of the two places."""
    directory = tiny_checkpoint(tmp_path / "torn")
    (directory / TEMPLATE_FILE).write_text(OTHER)
    return directory


def test_both_are_shown_with_what_to_write_in_the_manifest(torn: Path) -> None:
    with pytest.raises(BadCheckpoint) as refusal:
        _ingest(torn, None)

    told = str(refusal.value)
    assert "<|im_start|>the " in told
    assert "'chat_template: chat_template.jinja' or 'chat_template: tokenizer_config.json'" in told


@pytest.mark.parametrize("chosen", WRITTEN)
def test_the_one_that_the_manifest_chooses_is_packaged_everywhere(torn: Path, tmp_path: Path, chosen: str) -> None:
    ingested = _ingest(torn, chosen)
    artifact = converted(tmp_path / "artifact")
    (artifact / TEMPLATE_FILE).write_text(OTHER)

    (tmp_path / "package").mkdir()
    spec = {"foundry": {}, "context_length": 1024, "family": "qwen2", "chat_template": ingested["chat_template"]}
    package.run(spec, StepContext(tmp_path / "package", tmp_path, tmp_path / "lock", {"artifact": artifact}))

    wanted = WRITTEN[chosen]
    assert (tmp_path / "package" / TEMPLATE_FILE).read_text() == wanted
    assert json.loads((tmp_path / "package" / TOKENIZER_CONFIG).read_text())["chat_template"] == wanted


def test_a_choice_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path / "one")

    with pytest.raises(BadCheckpoint, match=r"chooses the chat template in chat_template\.jinja, and .* has none"):
        _ingest(directory, TEMPLATE_FILE)


def test_the_chosen_one_is_the_one_that_is_tried(torn: Path) -> None:
    edit_json(torn / TOKENIZER_CONFIG, chat_template="{{ 'nobody listens' }}")

    _ingest(torn, TEMPLATE_FILE)
    with pytest.raises(BadCheckpoint, match="leaves out what the user says"):
        _ingest(torn, TOKENIZER_CONFIG)


def _ingest(directory: Path, chosen: str | None) -> dict[str, str]:
    spec = {"path": str(directory), "base": None, "roots": [str(directory.parent)], "chat_template": chosen}
    return ingest.run(spec, StepContext(directory.parent, directory.parent / "scratch", directory.parent / "lock"))
