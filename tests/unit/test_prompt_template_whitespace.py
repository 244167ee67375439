"""A chat template in a package means the same to transformers and to an engine that does not trim around tags."""

from dataclasses import replace

import pytest

from olivepress.checkpoints.chat_template import ChatTemplate, Whitespace
from olivepress.errors import BadCheckpoint
from olivepress.foundry.portable_template import SAMPLES, portable
from tests.unit import chat_templates as published

# They look for a text in a text, which the engine never finds.
REWORDED = {"DEEPSEEK_R1", "QWEN3"}
AWKWARD = replace(
    published.CHATML,
    source="""{# a comment #}
{% for m in messages %}

  {% if m.role == 'user' %}
A  {{ m.content }}   {% if loop.last %} x {% endif %}
   {% raw %} {{ raw }} {% endraw %}
{% else %}
  {{ m.content -}}

{% endif %}
  {%+ if 1 %}y{% endif +%}

{% endfor %}
{% generation %}"quoted" text{% endgeneration %}
tail
""",
)


@pytest.mark.parametrize(
    "chat_template",
    [published.ZEPHYR, AWKWARD, *map(published.ALL.__getitem__, sorted(REWORDED))],
    ids=["zephyr", "awkward", *sorted(REWORDED)],
)
@pytest.mark.parametrize("whitespace", Whitespace)
def test_a_rewritten_template_writes_what_the_original_writes_in_transformers(
    chat_template: ChatTemplate, whitespace: Whitespace
) -> None:
    rewritten = portable(chat_template)

    assert rewritten.source != chat_template.source
    for sample in SAMPLES:
        assert rewritten.render(sample, whitespace=whitespace) == chat_template.render(sample)


@pytest.mark.parametrize("family", sorted(set(published.ALL) - {"ZEPHYR"} - REWORDED))
def test_a_template_on_which_both_agree_is_left_alone(family: str) -> None:
    assert portable(published.ALL[family]) is published.ALL[family]


def test_a_template_that_refuses_every_conversation_is_refused() -> None:
    with pytest.raises(BadCheckpoint, match="refuses every plain conversation"):
        portable(ChatTemplate("{{ raise_exception('no') }}"))
