"""A Foundry Local runtime that really dies or really hangs ends alone: validate goes on to its verdict and says so."""

import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from olivepress.foundry import runtime as foundry_runtime
from olivepress.gates import GateLimits
from tests.artifacts import converted, run_package, step_context
from workers.measures.hardware import hardware_class
from workers.steps import validate

pytestmark = pytest.mark.toolchain
CONTEXT_LENGTH = 320
PROMPT = {"prompt": "What is the capital of France?", "expect": {"regex": ""}}


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package; not to be changed."""
    directory = tmp_path_factory.mktemp("packaged")
    run_package(converted(directory / "model"), directory / "package", context_length=CONTEXT_LENGTH)
    return directory / "package" / "output"


def runtimes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if foundry_runtime.RUNTIME.module in child.cmdline()]


def validated(
    artifact: Path, directory: Path, hear: Callable[[str, float], None] = lambda phase, share: None, **gates: Any
) -> dict[str, Any]:
    spec = {
        "prompts": [PROMPT],
        "gates": asdict(GateLimits(**gates)),
        "name": "candidate-1",
        "source_size_bytes": 1,
        "soak": {"sessions": 11},
    }
    return validate.run(spec, step_context(directory, artifact, report_progress=hear))


def verdicts(result: dict[str, Any]) -> dict[str, str]:
    return {gate["name"]: gate["verdict"] for gate in result["report"]["gates"]}


@pytest.mark.parametrize(
    ("ending", "phase", "words"),
    [
        (signal.SIGKILL, "certificate: chatting", "(SIGKILL) while chatting"),
        (signal.SIGSEGV, "certificate: chatting", "memory fault (SIGSEGV) while chatting"),
        (signal.SIGSTOP, "certificate: starting", "did not answer within 6 s and was stopped while starting"),
    ],
    ids=["killed", "crashed", "hanging"],
)
def test_a_runtime_that_ends_badly_fails_its_gate_and_nothing_else(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: signal.Signals, phase: str, words: str
) -> None:
    limit_s = 6.0 if ending is signal.SIGSTOP else 300.0
    monkeypatch.setattr(foundry_runtime, "RUNTIME", replace(foundry_runtime.RUNTIME, time_limit_s=limit_s))

    def end_it(heard: str, share: float) -> None:
        if heard == phase:
            for runtime in runtimes():
                runtime.send_signal(ending)

    result = validated(packaged, tmp_path, end_it)

    assert result["verdict"] == "failed"
    assert [name for name, verdict in verdicts(result).items() if verdict == "failed"] == ["certificate_required"]
    assert words in result["report"]["certificate"]["problem"]
    assert words in next(gate["note"] for gate in result["report"]["gates"] if gate["name"] == "certificate_required")
    assert result["report"]["prompts"]["passed"] == 1
    assert result["report"]["soak"]["sessions"] == 11
    assert runtimes() == []


@pytest.mark.parametrize(
    ("hardware", "verdict"), [(None, "failed"), ("Another / 8 cores / 64 GiB", "not_binding")], ids=["its", "other"]
)
def test_limits_of_time_bind_a_whole_validation_only_on_their_hardware(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware: str | None, verdict: str
) -> None:
    monkeypatch.setattr(validate, "certify", lambda *args, **more: {"status": "passed", "exchanges": []})
    # Nothing is that fast.
    limits = {"max_first_token_ms": 1e-6, "min_tokens_per_s": 1e12, "max_load_ms": 1e-6}

    result = validated(packaged, tmp_path, **limits, timing_hardware=hardware or hardware_class())

    assert {verdicts(result)[name] for name in limits} == {verdict}
    assert result["verdict"] == ("failed" if hardware is None else "passed")
