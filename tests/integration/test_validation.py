"""Package and validate, with the real engine and the real runtime, on tiny converted models."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnxruntime_genai as og
import pytest
from tokenizers import Tokenizer, pre_tokenizers
from transformers.utils.chat_template_utils import render_jinja_template

from olivepress.chat_template import read_chat_template
from olivepress.errors import BadArtifact, BadCheckpoint, BadManifest
from olivepress.portable_template import SAMPLES, portable
from olivepress.recipes import FoundrySettings, GateLimits
from tests.artifacts import converted, rewrite_json
from tests.unit import chat_templates as published
from workers.measures.domain_prompts import meets
from workers.measures.format import check_format
from workers.steps import package, validate
from workers.steps.context import StepContext
from workers.toolchains.genai import opened

pytestmark = pytest.mark.toolchain

CONTEXT_LENGTH = 4096
REPORT_KEYS = {
    "schema_version",
    "hardware",
    "load_average",
    "size_bytes",
    "source_size_bytes",
    "load_ms",
    "first_token_ms",
    "tokens_per_s",
    "rss_after_load_bytes",
    "peak_rss_bytes",
    "cpu_cores",
    "runs",
    "prompts",
    "tokenizer",
    "certificate",
    "gates",
}
# This process has torch loaded; a model of 0.4 MB measured inside it would show all of that.
SMALL_RSS_BYTES = 160 * 2**20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What convert leaves; not to be changed."""
    return converted(tmp_path_factory.mktemp("model"))


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.fixture(scope="module")
def packaged(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of `model`; not to be changed."""
    directory = tmp_path_factory.mktemp("packaged")
    _package(model, directory)
    return directory / "output"


@pytest.fixture
def package_copy(packaged: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(packaged, tmp_path / "package"))


def _context(directory: Path, artifact: Path, **more: Any) -> StepContext:
    for name in ("output", "scratch"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    return StepContext(
        directory / "output", directory / "scratch", directory / "host.lock", {"artifact": artifact}, **more
    )


def _package(
    artifact: Path, directory: Path, *, context_length: int = CONTEXT_LENGTH, **foundry: float
) -> dict[str, Any]:
    spec = {"foundry": asdict(FoundrySettings(**foundry)), "context_length": context_length, "family": "qwen2"}
    return package.run(spec, _context(directory, artifact))


def _validate(artifact: Path, directory: Path, *prompts: dict[str, Any], **gates: Any) -> dict[str, Any]:
    spec = {
        "prompts": list(prompts),
        "gates": asdict(GateLimits(**gates)),
        "name": "certify-0123",
        "source_size_bytes": 123,
    }
    return validate.run(spec, _context(directory, artifact))


def _bytes(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


class TestPackage:
    def test_the_recipes_generation_settings_and_the_context_are_written(self, model: Path, tmp_path: Path) -> None:
        result = _package(model, tmp_path, context_length=1024, temperature=0.3)

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
        assert result["size_bytes"] == sum(map(len, _bytes(tmp_path / "output").values()))

    def test_a_temperature_of_zero_means_greedy(self, model: Path, tmp_path: Path) -> None:
        _package(model, tmp_path, temperature=0.0)

        assert json.loads((tmp_path / "output" / "genai_config.json").read_text())["search"]["do_sample"] is False
        with opened(tmp_path / "output") as engine:
            assert engine.generate(engine.encode("Hello"), 2).tokens

    def test_the_same_model_gives_the_same_bytes(self, model: Path, tmp_path: Path) -> None:
        _package(model, tmp_path / "one")
        _package(Path(shutil.copytree(model, tmp_path / "elsewhere")), tmp_path / "two")

        assert _bytes(tmp_path / "one" / "output") == _bytes(tmp_path / "two" / "output")

    def test_the_converted_model_is_only_read(self, model: Path, tmp_path: Path) -> None:
        before = _bytes(model)

        _package(model, tmp_path)

        assert _bytes(model) == before

    def test_a_stale_template_in_tokenizer_config_is_replaced(self, copy: Path, tmp_path: Path) -> None:
        rewrite_json(copy / "tokenizer_config.json", chat_template="stale {{ messages }}")

        _package(copy, tmp_path / "out")

        output = tmp_path / "out" / "output"
        template = (output / "chat_template.jinja").read_text()
        assert template == (copy / "chat_template.jinja").read_text()
        assert json.loads((output / "tokenizer_config.json").read_text())["chat_template"] == template

    def test_nulls_and_what_names_the_machine_are_not_taken_over(self, copy: Path, tmp_path: Path) -> None:
        rewrite_json(copy / "genai_config.json", model__pad_token_id=None)
        rewrite_json(copy / "tokenizer_config.json", name_or_path="/home/somebody", is_local=True)

        _package(copy, tmp_path / "out")

        output = tmp_path / "out" / "output"
        assert "null" not in (output / "genai_config.json").read_text()
        assert not {"name_or_path", "is_local"} & set(json.loads((output / "tokenizer_config.json").read_text()))

    @pytest.mark.parametrize("named", ["TokenizersBackend", "MyOwnTokenizer", "<absent>"])
    def test_a_tokenizer_class_that_the_engine_does_not_know_is_replaced(
        self, copy: Path, tmp_path: Path, named: str
    ) -> None:
        rewrite_json(copy / "tokenizer_config.json", tokenizer_class=named)

        _package(copy, tmp_path / "out")

        config = json.loads((tmp_path / "out" / "output" / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        check_format(tmp_path / "out" / "output")

    def test_a_model_without_a_chat_template_is_refused(self, copy: Path, tmp_path: Path) -> None:
        (copy / "chat_template.jinja").unlink()

        with pytest.raises(BadCheckpoint, match=r"no chat template.*submit it again"):
            _package(copy, tmp_path / "out")

    def test_a_template_that_the_form_cannot_express_is_packaged_with_the_reason(
        self, copy: Path, tmp_path: Path
    ) -> None:
        (copy / "chat_template.jinja").write_text(published.GEMMA3.source)

        result = _package(copy, tmp_path / "out")

        assert result["prompt_template"] is None
        assert "merges the system message" in result["prompt_template_reason"]

    def test_a_template_that_the_engine_would_render_with_other_line_breaks_is_mended(
        self, copy: Path, tmp_path: Path
    ) -> None:
        (copy / "chat_template.jinja").write_text(published.ZEPHYR.source)
        rewrite_json(copy / "tokenizer_config.json", **published.ZEPHYR.special_tokens)

        _package(copy, tmp_path / "out")

        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
        with opened(tmp_path / "out" / "output") as engine:
            assert engine.prompt(messages) == published.ZEPHYR.render(messages)


class TestValidate:
    def test_a_sound_model_passes_and_everything_is_measured(self, packaged: Path, tmp_path: Path) -> None:
        prompts = [
            {"name": "first", "prompt": "What is the capital of France?", "expect": {"regex": ".", "equals": None}},
            {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]},
        ]

        result = _validate(packaged, tmp_path, *prompts)

        report = result["report"]
        assert result["verdict"] == "passed"
        assert set(report) == REPORT_KEYS
        assert json.loads(json.dumps(report)) == report
        assert report["size_bytes"] == sum(map(len, _bytes(packaged).values()))
        assert report["source_size_bytes"] == 123
        assert report["first_token_ms"]["p95"] >= report["first_token_ms"]["median"] > 0
        assert 0 < report["tokens_per_s"]["p95"] <= report["tokens_per_s"]["median"]
        assert report["first_token_ms"]["prompt_tokens"] > 5
        assert [item["name"] for item in report["prompts"]["items"]] == ["first", "prompt 2"]
        assert [item["passed"] for item in report["prompts"]["items"]] == [True, None]
        assert report["prompts"]["items"][0]["expect"] == {"regex": "."}
        assert report["tokenizer"] == {"compared": 4, "same_text": 4, "same_tokens": 4, "first_difference": None}
        assert report["certificate"]["status"] == "passed"
        assert [gate["verdict"] for gate in report["gates"]] == ["passed", "passed"]
        assert list((tmp_path / "output").iterdir()) == []

    def test_memory_is_that_of_a_clean_process(self, packaged: Path, tmp_path: Path) -> None:
        report = _validate(packaged, tmp_path)["report"]

        assert 0 < report["rss_after_load_bytes"] <= report["peak_rss_bytes"] < SMALL_RSS_BYTES

    def test_wrong_answers_fail_the_gate_and_are_shown(self, packaged: Path, tmp_path: Path) -> None:
        result = _validate(packaged, tmp_path, {"prompt": "Hello", "expect": {"equals": "never this"}})

        report = result["report"]
        assert result["verdict"] == "failed"
        assert report["prompts"]["passed"] == 0
        assert report["prompts"]["items"][0]["answer"]
        assert {gate["name"]: gate["verdict"] for gate in report["gates"]} == {
            "certificate_required": "passed",
            "min_prompts_passed": "failed",
        }

    def test_without_expectations_the_prompt_gate_does_not_bind(self, packaged: Path, tmp_path: Path) -> None:
        result = _validate(packaged, tmp_path)

        assert result["verdict"] == "passed"
        assert result["report"]["gates"][1]["verdict"] == "not_binding"

    def test_one_prompt_that_cannot_be_asked_fails_alone(self, packaged: Path, tmp_path: Path) -> None:
        endless = {"prompt": "word " * 5000, "expect": {"contains": ""}}

        report = _validate(packaged, tmp_path, endless, {"prompt": "Hello", "expect": {"contains": ""}})["report"]

        assert [item["passed"] for item in report["prompts"]["items"]] == [False, True]
        assert "leaves no room for an answer" in report["prompts"]["items"][0]["problem"]
        assert report["certificate"]["status"] == "passed"
        assert report["certificate"]["exchanges"][0]["question"] == "Hello"

    def test_a_model_that_the_runtime_cannot_run_fails_with_the_certificates_reason(
        self, packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(validate, "certify", lambda *args, **more: {"status": "failed", "problem": "it crashed"})

        result = _validate(packaged, tmp_path)

        assert result["verdict"] == "failed"
        assert result["report"]["gates"][0]["verdict"] == "failed"

    def test_a_model_that_the_engine_cannot_open_is_an_error_and_no_verdict(
        self, package_copy: Path, tmp_path: Path
    ) -> None:
        rewrite_json(package_copy / "genai_config.json", model__surprise=1)

        with pytest.raises(BadArtifact, match=r"onnxruntime-genai cannot open the model: .*Unknown value"):
            _validate(package_copy, tmp_path / "work")

    def test_progress_grows_from_start_to_end(self, packaged: Path, tmp_path: Path) -> None:
        heard: list[tuple[str, float]] = []
        spec = {"prompts": [], "gates": asdict(GateLimits()), "name": "certify-0123", "source_size_bytes": 1}

        validate.run(
            spec,
            _context(tmp_path, packaged, report_progress=lambda phase, share: heard.append((phase, share))),
        )

        shares = [share for _, share in heard]
        assert shares == sorted(shares)
        assert 0 <= min(shares) < max(shares) <= 1
        assert {"loading the model", "timing answers", "certificate: chatting"} <= {phase for phase, _ in heard}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "genai_config.json").unlink(), "has no genai_config.json"),
        (lambda d: (d / "genai_config.json").write_text("{"), "genai_config.json is not valid JSON"),
        (lambda d: rewrite_json(d / "genai_config.json", model__vocab_size=600), "512 logits .* vocabulary of 600"),
        (lambda d: rewrite_json(d / "genai_config.json", model__decoder__num_hidden_layers=3), "2 layers .* has 3"),
        (lambda d: rewrite_json(d / "genai_config.json", model__decoder__num_key_value_heads=4), "2 heads .* has 4"),
        (lambda d: rewrite_json(d / "genai_config.json", model__eos_token_id=[511, 512]), "token 512"),
        (lambda d: rewrite_json(d / "genai_config.json", search__max_length=5000), "5000 tokens in a context of 4096"),
        (lambda d: (d / "model.onnx").unlink(), "has no model.onnx"),
        (lambda d: (d / "model.onnx").write_bytes(b"no graph"), "no ONNX model"),
        (lambda d: (d / "model.onnx.data").unlink(), "has no model.onnx.data"),
        (lambda d: os.truncate(d / "model.onnx.data", 1000), "ends at 1000 bytes and the graph reads"),
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda d: rewrite_json(d / "tokenizer.json", model__vocab={"far": 700}), "token 700 and the model only 512"),
        (lambda d: rewrite_json(d / "tokenizer_config.json", tokenizer_class="<absent>"), "names no tokenizer_class"),
        (lambda d: (d / "chat_template.jinja").write_text("other"), "different chat templates"),
    ],
)
def test_files_that_are_missing_or_disagree_are_named(
    package_copy: Path, damage: Callable[[Path], None], words: str
) -> None:
    check_format(package_copy)

    damage(package_copy)

    with pytest.raises(BadArtifact, match=words):
        check_format(package_copy)


def test_weights_that_are_a_link_out_of_the_directory_are_refused(package_copy: Path, tmp_path: Path) -> None:
    (package_copy / "model.onnx.data").rename(tmp_path / "elsewhere.data")
    (package_copy / "model.onnx.data").symlink_to(tmp_path / "elsewhere.data")

    with pytest.raises(BadArtifact, match="a link to a file outside"):
        check_format(package_copy)


@pytest.mark.parametrize("name", [*sorted(package.KNOWN_TOKENIZER_CLASSES), package.GENERIC_TOKENIZER_CLASS])
def test_the_engine_takes_every_tokenizer_class_that_is_left_as_it_is(package_copy: Path, name: str) -> None:
    rewrite_json(package_copy / "tokenizer_config.json", tokenizer_class=name)

    tokenizer = og.Tokenizer(og.Model(str(package_copy)))

    assert list(tokenizer.encode("Hello <|im_end|>"))


@pytest.mark.parametrize("family", sorted(set(published.ALL) - {"LLAMA32"}))
def test_the_engine_renders_a_packaged_template_as_transformers_does(package_copy: Path, family: str) -> None:
    chat_template = portable(published.ALL[family])
    rewrite_json(
        package_copy / "tokenizer_config.json", chat_template=chat_template.source, **chat_template.special_tokens
    )
    (package_copy / "chat_template.jinja").unlink()

    with opened(package_copy) as engine:
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


def test_a_tokenizer_that_the_engine_cuts_differently_is_reported(package_copy: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(package_copy / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.save(str(package_copy / "tokenizer.json"))

    report = _validate(package_copy, tmp_path / "work")["report"]

    assert report["tokenizer"]["same_text"] == 2
    assert report["tokenizer"]["same_tokens"] < 2
    assert report["tokenizer"]["first_difference"].startswith("tokens: ")


def test_the_template_that_counts_is_read_back_from_the_package(packaged: Path) -> None:
    chat_template = read_chat_template(packaged)

    assert chat_template is not None
    assert chat_template.special_tokens["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize(
    ("expected", "holds"),
    [
        ({"equals": " Paris "}, True),
        ({"equals": "paris"}, False),
        ({"contains": "ari"}, True),
        ({"contains": "ARI"}, False),
        ({"regex": "^P.*s"}, True),
        ({"regex": "x"}, False),
        ({"contains": "ari", "regex": "x"}, False),
    ],
)
def test_every_part_of_an_expectation_must_hold(expected: dict[str, str], holds: bool) -> None:
    assert meets("Paris\n", expected) is holds


@pytest.mark.parametrize(("expected", "words"), [({"sounds_like": "x"}, "cannot be"), ({"regex": "("}, "no regular")])
def test_an_expectation_that_cannot_be_judged_is_an_error(expected: dict[str, str], words: str) -> None:
    with pytest.raises(BadManifest, match=words):
        meets("Paris", expected)
