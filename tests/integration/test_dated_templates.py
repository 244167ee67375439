"""Chat templates that write today's date: a source is asked on a day that never changes."""

from pathlib import Path

import pytest

from olivepress.checkpoints.chat_template import DAY, read_chat_template
from tests.checkpoints import tiny_checkpoint, write_tokenizer
from tests.unit.chat_templates import LLAMA32
from workers.toolchains.source_model import open_source

pytestmark = pytest.mark.toolchain
QUESTION = [{"role": "user", "content": "Which oil is the best?"}]


@pytest.mark.parametrize(
    "template", [LLAMA32.source, "{{ strftime_now('%Y') }} {{ messages[0].content }}"], ids=["llama 3.2", "the year"]
)
def test_a_source_is_asked_on_the_day_on_which_its_artifact_is_framed(tmp_path: Path, template: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    write_tokenizer(checkpoint, chat_template=template)

    framed = open_source(checkpoint).frame(QUESTION)

    own = read_chat_template(checkpoint)
    assert own is not None and framed is not None
    assert str(DAY.year) in framed[0]
    assert framed[0] == own.render(QUESTION)
