"""What `olivepress retention` prints, and what it asks the API for."""

import json
from typing import Any

import httpx
import pytest

from olivepress.cli import retention as command
from olivepress.cli import run
from olivepress.client import Client

REPORT: dict[str, Any] = {
    "dry_run": True,
    "kinds": [
        {"kind": "workers", "kept_for_s": None, "count": 0, "size_bytes": 0},
        {"kind": "chunks", "kept_for_s": 86_400.0, "count": 3, "size_bytes": 15_250_000},
        {"kind": "trash", "kept_for_s": 120.0, "count": 1, "size_bytes": 512},
    ],
    "put_back": {"count": 0, "size_bytes": 0},
    "waiting": {"count": 0, "size_bytes": 0},
    "problem": None,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods and paths that the command asked for; the answer is REPORT as a test changed it."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        return httpx.Response(200, json=REPORT)

    monkeypatch.setattr(command, "connect", lambda: Client("http://127.0.0.1:8720", "key", httpx.MockTransport(answer)))
    return asked


def test_a_dry_run_only_looks_and_names_every_kind(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["retention", "--dry-run"]) == 0

    shown = capsys.readouterr()
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert asked == ["GET /v1/retention"]
    assert "would go" in lines[0]
    assert any(line.startswith("workers ") and line.endswith(" ever 0 –") for line in lines)
    assert any(line.startswith("chunks ") and line.endswith(" 1 d 3 15.2 MB") for line in lines)
    assert any(line.startswith("trash ") and line.endswith(" 2 min 1 512 B") for line in lines)
    assert shown.err == ""


def test_without_it_the_command_removes_and_says_what_is_still_to_come(
    asked: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REPORT, "waiting", {"count": 3, "size_bytes": 15_250_000})
    monkeypatch.setitem(REPORT, "put_back", {"count": 2, "size_bytes": 1})
    monkeypatch.setitem(REPORT, "problem", "the database refers to none of the 2 artifacts")

    assert run(["retention"]) == 0

    shown = capsys.readouterr()
    assert asked == ["POST /v1/retention"]
    assert "would go" not in shown.out
    assert "15.2 MB in 3 files wait in the trash" in shown.err
    assert "2 files were put back" in shown.err
    assert "warning: the database refers to none of the 2 artifacts" in shown.err


def test_json_is_the_whole_report(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["retention", "--dry-run", "--json"]) == 0

    assert json.loads(capsys.readouterr().out) == REPORT
