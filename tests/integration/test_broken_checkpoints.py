"""Each broken checkpoint ends in one clear, permanent error, and none in a model."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from olivepress.errors import PermanentError
from olivepress.recipes.recipe import recipe_named
from tests.broken import TABLE, write
from tests.broken.sound import write_sound
from workers.out_of_memory import is_out_of_memory
from workers.steps import convert, ingest
from workers.steps.context import StepContext
from workers.toolchains import limits

pytestmark = pytest.mark.toolchain


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sound(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("name", TABLE)
def test_a_broken_checkpoint_is_told_as_what_it_is(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(limits, "CPU_S", 0.3)
    broken = TABLE[name]
    directory = write(name, sound, tmp_path)
    base = shutil.copytree(sound / broken.base, tmp_path / "base") if broken.base else None

    with pytest.raises(PermanentError) as refusal:
        _ingest_and_convert(directory, base, tmp_path)

    message = str(refusal.value)
    assert type(refusal.value) is broken.error
    assert re.search(broken.says, message)
    # else it would be tried again on a larger worker
    assert not is_out_of_memory(refusal.value)
    assert "\n" not in message
    assert json.loads(json.dumps(message)) == message
    assert message.encode("utf-8")


@pytest.mark.parametrize("name", ["qwen2", "llama", "shards", "wide", "phi3", "gguf"])
def test_what_they_are_made_from_is_sound(sound: Path, tmp_path: Path, name: str) -> None:
    assert _ingest_and_convert(sound / name, None, tmp_path)["parity"]["positions"] > 0


def _ingest_and_convert(directory: Path, base: Path | None, workspace: Path) -> dict[str, Any]:
    for name in ("output", "scratch"):
        (workspace / name).mkdir()
    context = StepContext(workspace / "output", workspace / "scratch", workspace / "lock")
    roots = [directory.parent, workspace]
    asked = {"path": str(directory), "base": str(base) if base else None, "roots": [str(root) for root in roots]}
    ingested = ingest.run(asked, context)
    build = recipe_named("cpu-int4").build_options()
    return convert.run({**asked, "base": ingested["base_path"], "ingest": ingested, "build": build}, context)
