"""`olivepress supported` over workers that a client gives."""

import json
from typing import Any

import pytest

from olivepress.checkpoints.known_architectures import BUILT_WRONGLY, MENDED, NOT_BUILT
from olivepress.cli import run, supported


class Stack:
    """A client with these workers."""

    def __init__(self, *workers: dict[str, Any]) -> None:
        self._workers = list(workers)

    def __enter__(self) -> "Stack":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def workers(self) -> list[dict[str, Any]]:
        return self._workers


def worker(*architectures: str, alive: bool = True) -> dict[str, Any]:
    return {"alive": alive, "architectures": list(architectures)}


def ask(monkeypatch: pytest.MonkeyPatch, *workers: dict[str, Any], as_json: bool = True) -> int:
    monkeypatch.setattr(supported, "connect", lambda: Stack(*workers))
    return run(["supported", *(["--json"] if as_json else [])])


def test_it_lists_what_any_living_worker_can_convert(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workers = worker("Ernie4_5ForCausalLM"), worker("Phi3ForCausalLM"), worker("LlamaForCausalLM", alive=False)

    assert ask(monkeypatch, *workers) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["supported"] == [
        {"architecture": "Ernie4_5ForCausalLM", "mended": None},
        {"architecture": "Phi3ForCausalLM", "mended": MENDED["Phi3ForCausalLM"]},
    ]


def test_it_says_why_others_cannot(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ask(monkeypatch, worker("Qwen2ForCausalLM"), as_json=False)

    shown = " ".join(capsys.readouterr().out.split())
    for name in (*BUILT_WRONGLY, *NOT_BUILT):
        assert name in shown
    assert "its norms subtract the mean" in shown


def test_what_a_newer_worker_can_convert_is_not_called_impossible(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(monkeypatch, worker("MixtralForCausalLM"))

    found = json.loads(capsys.readouterr().out)
    assert "MixtralForCausalLM" not in [entry["architecture"] for entry in found["not_supported"]]


def test_without_a_living_worker_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(monkeypatch, worker("Qwen2ForCausalLM", alive=False), as_json=False)

    printed = capsys.readouterr()
    assert "no worker is alive" in printed.err
    assert "Qwen2ForCausalLM" not in printed.out


def test_no_architecture_is_both_mended_and_refused() -> None:
    assert not MENDED.keys() & (BUILT_WRONGLY | NOT_BUILT).keys()
