"""`olivepress doctor --self-test`, with the real toolchain and with one that is broken."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workers.toolchains.taught_checkpoint import ANSWER

pytestmark = pytest.mark.toolchain

# As it may be under load; on an idle machine it takes a third of what is promised.
WITHIN_S = 240.0


def doctor(tmp_path: Path, **environment: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, document and messages of `olivepress doctor --self-test --json`."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("OLIVEPRESS_")}
    variables |= {"OLIVEPRESS_DATA_DIR": str(tmp_path / "data"), "TMPDIR": str(tmp_path), **environment}
    command = [sys.executable, "-m", "olivepress", "doctor", "--self-test", "--json"]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    return ended.returncode, json.loads(ended.stdout), ended.stderr


def test_a_tiny_checkpoint_becomes_int4_and_gives_the_answer_that_it_has_learnt(tmp_path: Path) -> None:
    code, told, messages = doctor(tmp_path)

    assert (code, told["ok"]) == (0, True), (told, messages)
    checks = {check["name"]: check for check in told["checks"] if check["name"].startswith("self test")}
    parts = ["toolchain", "ingest", "convert", "package", "chat", "Foundry Local"]
    assert list(checks) == [*(f"self test: {part}" for part in parts), "self test"]
    assert [checks[f"self test: {part}"]["status"] for part in parts] == ["ok"] * len(parts)
    assert ANSWER in checks["self test: chat"]["detail"]
    assert told["self_test"]["warm_s"] < told["self_test"]["cold_s"]
    assert told["toolchain"]["toolchain"]["onnxruntime-genai"]
    assert list(tmp_path.iterdir()) == []


def test_a_toolchain_that_does_not_load_is_a_failure_with_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('libtorch.so: the disk has lost it')\n")

    code, told, _ = doctor(tmp_path, PYTHONPATH=str(broken))

    (check,) = [check for check in told["checks"] if check["name"].startswith("self test")]
    assert (code, told["ok"], check["name"], check["status"]) == (1, False, "self test: toolchain", "fail")
    assert "libtorch.so: the disk has lost it" in check["detail"]
