"""Package, with the real engine, on a tiny converted model."""

import json
import shutil
from pathlib import Path

import onnxruntime_genai as og
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from olivepress.checkpoints.chat_template import read_chat_template
from olivepress.errors import BadCheckpoint
from olivepress.foundry.portable_template import SAMPLES, portable
from tests.artifacts import bytes_of, converted, rewrite_json, run_package
from tests.unit import chat_templates as published
from workers.measures.format import check_format
from workers.steps import package
from workers.toolchains.genai import opened

pytestmark = pytest.mark.toolchain


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What convert leaves; not to be changed."""
    return converted(tmp_path_factory.mktemp("model"))


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def test_the_recipes_generation_settings_and_the_context_are_written(model: Path, tmp_path: Path) -> None:
    result = run_package(model, tmp_path, context_length=1024, temperature=0.3)

    config = json.loads((tmp_path / "output" / "genai_config.json").read_text())
    assert config["model"]["context_length"] == 1024
    assert (
        config["search"]
        | {
            "max_length": 1024,
            "temperature": 0.3,
            "top_p": 0.9,
            "repetition_penalty": 1.1,
            "do_sample": True,
        }
        == config["search"]
    )
    assert result["prompt_template"]["prompt"] == "<|im_start|>user\n{Content}<|im_end|>\n<|im_start|>assistant"
    assert result["prompt_template_reason"] is None
    assert result["size_bytes"] == sum(map(len, bytes_of(tmp_path / "output").values()))


def test_a_temperature_of_zero_means_greedy(model: Path, tmp_path: Path) -> None:
    run_package(model, tmp_path, temperature=0.0)

    assert json.loads((tmp_path / "output" / "genai_config.json").read_text())["search"]["do_sample"] is False
    with opened(tmp_path / "output") as engine:
        assert engine.generate(engine.encode("Hello"), 2).tokens


def test_the_same_model_gives_the_samebytes_of(model: Path, tmp_path: Path) -> None:
    run_package(model, tmp_path / "one")
    run_package(Path(shutil.copytree(model, tmp_path / "elsewhere")), tmp_path / "two")

    assert bytes_of(tmp_path / "one" / "output") == bytes_of(tmp_path / "two" / "output")


def test_the_converted_model_is_only_read(model: Path, tmp_path: Path) -> None:
    before = bytes_of(model)

    run_package(model, tmp_path)

    assert bytes_of(model) == before


def test_a_stale_template_in_tokenizer_config_is_replaced(copy: Path, tmp_path: Path) -> None:
    rewrite_json(copy / "tokenizer_config.json", chat_template="stale {{ messages }}")

    run_package(copy, tmp_path / "out")

    output = tmp_path / "out" / "output"
    template = (output / "chat_template.jinja").read_text()
    assert template == (copy / "chat_template.jinja").read_text()
    assert json.loads((output / "tokenizer_config.json").read_text())["chat_template"] == template


def test_nulls_and_what_names_the_machine_are_not_taken_over(copy: Path, tmp_path: Path) -> None:
    rewrite_json(copy / "genai_config.json", model__pad_token_id=None)
    rewrite_json(copy / "tokenizer_config.json", name_or_path="/home/somebody", is_local=True)

    run_package(copy, tmp_path / "out")

    output = tmp_path / "out" / "output"
    assert "null" not in (output / "genai_config.json").read_text()
    assert not {"name_or_path", "is_local"} & set(json.loads((output / "tokenizer_config.json").read_text()))


@pytest.mark.parametrize("named", ["TokenizersBackend", "MyOwnTokenizer", "<absent>"])
def test_a_tokenizer_class_that_the_engine_does_not_know_is_replaced(copy: Path, tmp_path: Path, named: str) -> None:
    rewrite_json(copy / "tokenizer_config.json", tokenizer_class=named)

    run_package(copy, tmp_path / "out")

    config = json.loads((tmp_path / "out" / "output" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    check_format(tmp_path / "out" / "output")


def test_a_model_without_a_chat_template_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "chat_template.jinja").unlink()

    with pytest.raises(BadCheckpoint, match=r"no chat template.*submit it again"):
        run_package(copy, tmp_path / "out")


def test_a_template_that_the_form_cannot_express_is_packaged_with_the_reason(copy: Path, tmp_path: Path) -> None:
    (copy / "chat_template.jinja").write_text(published.GEMMA3.source)

    result = run_package(copy, tmp_path / "out")

    assert result["prompt_template"] is None
    assert "merges the system message" in result["prompt_template_reason"]


def test_a_template_that_the_engine_would_render_with_other_line_breaks_is_mended(copy: Path, tmp_path: Path) -> None:
    (copy / "chat_template.jinja").write_text(published.ZEPHYR.source)
    rewrite_json(copy / "tokenizer_config.json", **published.ZEPHYR.special_tokens)

    run_package(copy, tmp_path / "out")

    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    with opened(tmp_path / "out" / "output") as engine:
        assert engine.prompt(messages) == published.ZEPHYR.render(messages)


@pytest.mark.parametrize("name", [*sorted(package.KNOWN_TOKENIZER_CLASSES), package.GENERIC_TOKENIZER_CLASS])
def test_the_engine_takes_every_tokenizer_class_that_is_left_as_it_is(copy: Path, name: str) -> None:
    rewrite_json(copy / "tokenizer_config.json", tokenizer_class=name)

    tokenizer = og.Tokenizer(og.Model(str(copy)))

    assert list(tokenizer.encode("Hello <|im_end|>"))


@pytest.mark.parametrize("family", sorted(set(published.ALL) - {"LLAMA32"}))
def test_the_engine_renders_a_packaged_template_as_transformers_does(copy: Path, family: str) -> None:
    chat_template = portable(published.ALL[family])
    rewrite_json(copy / "tokenizer_config.json", chat_template=chat_template.source, **chat_template.special_tokens)
    (copy / "chat_template.jinja").unlink()

    with opened(copy) as engine:
        for sample in SAMPLES:
            try:
                (wanted,), _ = render_jinja_template(
                    conversations=[[dict(message) for message in sample]],
                    chat_template=published.ALL[family].source,
                    add_generation_prompt=True,
                    **published.ALL[family].special_tokens,
                )
            except Exception:  # jinja2's own, for a role that the template refuses.
                continue
            assert published.ALL[family].render(sample) == wanted
            assert engine.prompt(sample) == wanted


def test_the_template_that_counts_is_read_back_from_therun_package(model: Path, tmp_path: Path) -> None:
    run_package(model, tmp_path)

    chat_template = read_chat_template(tmp_path / "output")

    assert chat_template is not None
    assert chat_template.special_tokens["eos_token"] == "<|im_end|>"
