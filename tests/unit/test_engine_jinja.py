"""What onnxruntime-genai's renderer lacks is said in other words, and jinja2 writes the same with them."""

import jinja2
import pytest

from olivepress.checkpoints.chat_template import ChatTemplate, Whitespace, environment_of
from olivepress.foundry import engine_jinja, jinja_text
from olivepress.foundry.portable_template import portable, unknown_to_the_engine
from tests.unit.chat_templates import ALL
from tests.unit.engine_expressions import MESSAGES, REWORDED, STATEMENTS, UNTOUCHED


def parsed(source: str) -> jinja2.nodes.Template:
    return environment_of(Whitespace.TRIMMED).parse(source)


def rendered(source: str) -> str:
    return environment_of(Whitespace.KEPT).from_string(source).render(messages=MESSAGES, tools=None)


@pytest.mark.parametrize("expression", REWORDED)
def test_other_words_write_what_the_original_writes_and_are_none_that_the_engine_lacks(expression: str) -> None:
    template = parsed(source := f"{{{{ {expression} }}}}")

    assert engine_jinja.reworded(template)

    assert rendered(jinja_text.written(template)) == rendered(source)
    assert engine_jinja.unknown_words(template) == []


@pytest.mark.parametrize("expression", UNTOUCHED)
def test_what_the_engine_knows_is_left_alone(expression: str) -> None:
    assert not engine_jinja.reworded(parsed(f"{{{{ {expression} }}}}"))


@pytest.mark.parametrize("source", [*(f"{{{{ {each} }}}}" for each in UNTOUCHED), *STATEMENTS])
def test_a_template_that_is_only_written_anew_writes_the_same(source: str) -> None:
    anew = jinja_text.written(parsed(source))

    assert rendered(anew) == rendered(source)
    assert jinja_text.written(parsed(anew)) == anew


def test_a_key_of_a_message_is_not_looked_for_in_a_text() -> None:
    source = "{% for m in messages %}{% if 'tool_calls' in m %}x{% endif %}{{ m.content }}{% endfor %}"

    assert portable(given := ChatTemplate(source)) is given


@pytest.mark.parametrize(
    ("expression", "unknown"),
    [
        ("messages[0].content | upper", "| upper"),
        ("messages[0].content.rfind('a')", ".rfind()"),
        ("1 is upper", "is upper"),
    ],
)
def test_what_cannot_be_said_otherwise_is_named(expression: str, unknown: str) -> None:
    source = "{% if messages|length > 99 %}{{ " + expression + " }}{% endif %}{{ messages[0].content }}"

    assert unknown_to_the_engine(ChatTemplate(source)) == [unknown]


@pytest.mark.parametrize("family", sorted(ALL))
def test_published_templates_use_nothing_that_cannot_be_said(family: str) -> None:
    assert unknown_to_the_engine(portable(ALL[family])) == []


def test_a_template_with_parts_that_are_not_written_anew_stays_as_it_is() -> None:
    source = "{% with a = 'x' %}{{ messages[0].content.replace(a, 'y') }}{% endwith %}"

    assert portable(given := ChatTemplate(source)) is given
