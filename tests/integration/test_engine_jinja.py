"""The engine writes what jinja2 writes, once a template is in the engine's own words."""

import json
from collections.abc import Iterator

import onnxruntime_genai as og
import pytest

from olivepress.checkpoints.chat_template import Whitespace, environment_of
from olivepress.foundry import engine_jinja, jinja_text
from tests.artifacts import converted
from tests.unit.engine_expressions import MESSAGES, PAIRS, REWORDED, STATEMENTS, UNTOUCHED

pytestmark = pytest.mark.toolchain
TEMPLATES = [*(f"{{{{ {each} }}}}" for each in (*REWORDED, *UNTOUCHED)), *STATEMENTS, *PAIRS]
# The engine takes them as they are, with these values.
SAME_BY_CHANCE = {"messages[0].role.capitalize()", "'x' in nothing", "'role' in messages[0]"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Tokenizer]:
    model = og.Model(str(converted(tmp_path_factory.mktemp("model"))))
    yield og.Tokenizer(model)


def in_engine(engine: og.Tokenizer, source: str) -> str:
    return str(engine.apply_chat_template(json.dumps(MESSAGES), template_str=source, add_generation_prompt=True))


def in_jinja(source: str) -> str:
    return environment_of(Whitespace.KEPT).from_string(source).render(messages=MESSAGES, tools=None)


def renderings(engine: og.Tokenizer, source: str) -> list[str]:
    """What the engine writes, where it writes anything."""
    try:
        return [in_engine(engine, source)]
    except RuntimeError:
        return []


@pytest.mark.parametrize("source", TEMPLATES)
def test_a_template_in_the_engines_words_is_rendered_as_by_jinja(engine: og.Tokenizer, source: str) -> None:
    template = environment_of(Whitespace.TRIMMED).parse(source)
    engine_jinja.reworded(template)

    assert in_engine(engine, jinja_text.written(template)) == in_jinja(source)


@pytest.mark.parametrize("expression", sorted(set(REWORDED) - SAME_BY_CHANCE))
def test_what_is_reworded_is_still_beyond_the_engine(engine: og.Tokenizer, expression: str) -> None:
    source = f"{{{{ {expression} }}}}"

    assert renderings(engine, source) != [in_jinja(source)]


def test_every_word_that_is_named_as_unknown_fails_in_the_engine(engine: og.Tokenizer) -> None:
    uses = [f"messages[0].content.{name}({given})" for name in engine_jinja.UNKNOWN_METHODS for given in ("", "'a'")]
    uses += [f"messages[0].content | {name}" for name in engine_jinja.UNKNOWN_FILTERS]
    uses += [f"messages[0].content is {name}" for name in engine_jinja.UNKNOWN_TESTS]

    assert [use for use in uses if renderings(engine, f"{{{{ {use} }}}}")] == []
