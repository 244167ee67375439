"""Validate, with the real engine and the real runtime, on a tiny packaged model."""

import json
import shutil
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from olivepress.errors import BadArtifact, BadManifest
from olivepress.file_lock import exclusive
from olivepress.recipes.recipe import GateLimits
from tests.artifacts import bytes_of, converted, rewrite_json, run_package, run_validate, step_context
from workers import host
from workers.measures.domain_prompts import meets
from workers.measures.hardware import hardware_class
from workers.steps import validate
from workers.toolchains.genai import opened

pytestmark = pytest.mark.toolchain

REPORT_KEYS = {
    "schema_version",
    "hardware",
    "threads",
    "load_average",
    "toolchain",
    "size_bytes",
    "source_size_bytes",
    "size_ratio",
    "problem",
    "cross_check",
    "load_ms",
    "load",
    "first_token_ms",
    "tokens_per_s",
    "warm_up_ms",
    "rss_after_load_bytes",
    "peak_rss_bytes",
    "peak_rss_tokens",
    "highest_rss_bytes",
    "rss_spread_bytes",
    "waited_share",
    "has_source",
    "cpu_cores",
    "runs",
    "latency",
    "consistency",
    "cache",
    "prompts",
    "soak",
    "quality",
    "tokenizer",
    "tokenizer_parity",
    "edge_cases",
    "certificate",
    "gates",
}
DEFAULT_GATES = [
    "certificate_required",
    "min_prompts_passed",
    "cross_check",
    "tokenizer_parity",
    "edge_cases",
    "consistency",
    "max_kl_over_rounding",
]
# Shorter than the checkpoint's own, for what is tried at the limit takes the longest.
CONTEXT_LENGTH = 320
# This process has torch loaded; a model of 0.4 MB measured inside it would show all of that.
SMALL_RSS_BYTES = 160 * 2**20


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package; not to be changed."""
    directory = tmp_path_factory.mktemp("packaged")
    run_package(converted(directory / "model"), directory / "package", context_length=CONTEXT_LENGTH)
    return directory / "package" / "output"


@pytest.fixture
def package_copy(packaged: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(packaged, tmp_path / "package"))


def test_a_sound_model_passes_and_everything_is_measured(packaged: Path, tmp_path: Path) -> None:
    prompts = [
        {"name": "first", "prompt": "What is the capital of France?", "expect": {"regex": ".", "equals": None}},
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]},
    ]

    result = run_validate(packaged, tmp_path, *prompts)

    report = result["report"]
    assert result["verdict"] == "passed"
    assert set(report) == REPORT_KEYS
    assert json.loads(json.dumps(report)) == report
    assert report["size_bytes"] == sum(map(len, bytes_of(packaged).values()))
    assert report["source_size_bytes"] == 123
    assert report["first_token_ms"]["p95"] >= report["first_token_ms"]["median"] > 0
    assert 0 < report["tokens_per_s"]["p95"] <= report["tokens_per_s"]["median"]
    assert report["first_token_ms"]["prompt_tokens"] > 5
    assert [item["name"] for item in report["prompts"]["items"]] == ["first", "prompt 2"]
    assert [item["passed"] for item in report["prompts"]["items"]] == [True, None]
    assert report["prompts"]["items"][0]["expect"] == {"regex": "."}
    assert report["tokenizer"] == {"compared": 4, "same_text": 4, "same_tokens": 4, "first_difference": None}
    assert report["certificate"]["status"] == "passed"
    assert [gate["name"] for gate in report["gates"]] == DEFAULT_GATES
    verdicts = [gate["verdict"] for gate in report["gates"]]
    assert verdicts == ["passed"] * (len(DEFAULT_GATES) - 1) + ["not_binding"]
    assert [entry["prompt_tokens"] for entry in report["latency"]] == [16, 128, CONTEXT_LENGTH - 16]
    assert all(entry["first_token_ms"]["median"] > 0 for entry in report["latency"])
    assert report["cache"]["calculated_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    assert report["soak"]["verdict"] == "no_leak"
    assert report["quality"] == {"problem": "the source was not at hand"}
    assert report["tokenizer_parity"]["prompt_template"]["equal"] == report["tokenizer_parity"]["prompt_template"]["of"]
    assert report["certificate"]["discovery"] == {"listed_as": "certify-0123:1", "problems": []}
    assert hardware_class() == host.hardware()["class"] == report["hardware"]["class"]
    assert list((tmp_path / "output").iterdir()) == []


def test_memory_is_that_of_a_clean_process(packaged: Path, tmp_path: Path) -> None:
    report = run_validate(packaged, tmp_path)["report"]

    assert 0 < report["rss_after_load_bytes"] <= report["peak_rss_bytes"] < SMALL_RSS_BYTES


def test_nothing_is_timed_while_another_measure_has_the_host(packaged: Path, tmp_path: Path) -> None:
    stages = {"waiting for the host": threading.Event(), "loading the model": threading.Event()}

    def hear(phase: str, share: float) -> None:
        if phase in stages:
            stages[phase].set()

    context = step_context(tmp_path, packaged, report_progress=hear)
    spec = {"prompts": [], "gates": asdict(GateLimits()), "name": "certify-0123", "source_size_bytes": 1}
    validation = threading.Thread(target=validate.run, args=(spec, context))
    with exclusive(context.exclusive_lock, wait_s=0, what="the host"):
        validation.start()
        assert stages["waiting for the host"].wait(60)

        assert not stages["loading the model"].wait(0.5)

    assert stages["loading the model"].wait(60)
    validation.join()


def test_wrong_answers_fail_the_gate_and_are_shown(packaged: Path, tmp_path: Path) -> None:
    result = run_validate(packaged, tmp_path, {"prompt": "Hello", "expect": {"equals": "never this"}})

    report = result["report"]
    assert result["verdict"] == "failed"
    assert report["prompts"]["passed"] == 0
    assert report["prompts"]["items"][0]["answer"]
    assert [gate["name"] for gate in report["gates"] if gate["verdict"] == "failed"] == ["min_prompts_passed"]


def test_without_expectations_the_prompt_gate_does_not_bind(packaged: Path, tmp_path: Path) -> None:
    result = run_validate(packaged, tmp_path)

    assert result["verdict"] == "passed"
    assert result["report"]["gates"][1]["verdict"] == "not_binding"


def test_one_prompt_that_cannot_be_asked_fails_alone(packaged: Path, tmp_path: Path) -> None:
    endless = {"prompt": "word " * 5000, "expect": {"contains": ""}}

    report = run_validate(packaged, tmp_path, endless, {"prompt": "Hello", "expect": {"contains": ""}})["report"]

    assert [item["passed"] for item in report["prompts"]["items"]] == [False, True]
    assert "leaves no room for an answer" in report["prompts"]["items"][0]["problem"]
    assert report["certificate"]["status"] == "passed"
    assert report["certificate"]["exchanges"][0]["question"] == "Hello"


def test_a_model_that_the_runtime_cannot_run_fails_with_the_certificates_reason(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "certify", lambda *args, **more: {"status": "failed", "problem": "it crashed"})

    result = run_validate(packaged, tmp_path)

    assert result["verdict"] == "failed"
    assert result["report"]["gates"][0]["verdict"] == "failed"


def test_a_model_that_the_engine_cannot_open_is_an_error_and_no_verdict(package_copy: Path, tmp_path: Path) -> None:
    rewrite_json(package_copy / "genai_config.json", model__surprise=1)

    with pytest.raises(BadArtifact, match=r"onnxruntime-genai cannot open the model: .*Unknown value"):
        run_validate(package_copy, tmp_path / "work")


def test_a_pattern_of_the_tokenizer_that_the_engine_cannot_read_is_named(packaged: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(packaged, tmp_path / "damaged"))
    tokenizer = json.loads((damaged / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+(?<!x)"
    (damaged / "tokenizer.json").write_text(json.dumps(tokenizer))
    with (
        pytest.raises(BadArtifact, match=r"cannot open the tokenizer: .*x\).*tokenizer of the base model"),
        opened(damaged),
    ):
        pass


def test_progress_grows_from_start_to_end(packaged: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, float]] = []
    spec = {"prompts": [], "gates": asdict(GateLimits()), "name": "certify-0123", "source_size_bytes": 1}

    validate.run(
        spec,
        step_context(tmp_path, packaged, report_progress=lambda phase, share: heard.append((phase, share))),
    )

    shares = [share for _, share in heard]
    assert shares == sorted(shares)
    assert 0 <= min(shares) < max(shares) <= 1
    assert {"loading the model", "timing answers", "certificate: chatting"} <= {phase for phase, _ in heard}


def test_a_tokenizer_that_the_engine_cuts_differently_is_reported(package_copy: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(package_copy / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.save(str(package_copy / "tokenizer.json"))

    report = run_validate(package_copy, tmp_path / "work")["report"]

    assert report["tokenizer"]["same_text"] == 2
    assert report["tokenizer"]["same_tokens"] < 2
    assert report["tokenizer"]["first_difference"].startswith("tokens: ")


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
        ({"json_schema": {"type": "object"}}, False),
    ],
)
def test_every_part_of_an_expectation_must_hold(expected: dict[str, str], holds: bool) -> None:
    assert meets("Paris\n", expected) is holds


@pytest.mark.parametrize(
    ("answer", "holds"),
    [
        ('{"order": 7, "paid": true}', True),
        (' ```json\n{"order": 7}\n``` ', True),
        ('{"order": "7"}', False),
        ('{"paid": true}', False),
        ('The order is {"order": 7}', False),
        ("", False),
        ("[" * 100_000, False),
    ],
)
def test_an_answer_has_a_shape_when_it_is_one_value_of_the_schema(answer: str, holds: bool) -> None:
    schema = {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]}

    assert meets(answer, {"json_schema": schema}) is holds


@pytest.mark.parametrize(
    "schema", [{"type": "obj"}, {"$ref": "http://127.0.0.1:9/schema.json"}], ids=["no schema", "elsewhere"]
)
def test_a_schema_that_cannot_be_used_is_an_error_and_is_not_fetched(schema: dict[str, str]) -> None:
    with pytest.raises(BadManifest, match="no usable JSON schema"):
        meets("{}", {"json_schema": schema})


@pytest.mark.parametrize(("expected", "words"), [({"sounds_like": "x"}, "cannot be"), ({"regex": "("}, "no regular")])
def test_an_expectation_that_cannot_be_judged_is_an_error(expected: dict[str, str], words: str) -> None:
    with pytest.raises(BadManifest, match=words):
        meets("Paris", expected)
