"""The toolchain's versions, without the toolchain."""

import subprocess
import sys

from workers.toolchains import versions
from workers.toolchains.versions import toolchain_versions


def test_the_versions_are_read_without_importing_a_library() -> None:
    code = "import sys, workers.toolchains.versions as v; v.toolchain_versions(); print(*sys.modules)"

    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert not {"torch", "olive", "onnxruntime", "onnxruntime_genai", "transformers", "peft"} & set(modules)


def test_a_distribution_that_is_not_installed_is_left_out(monkeypatch) -> None:
    monkeypatch.setattr(versions, "TOOLCHAIN", ("pytest", "no-such-distribution"))

    assert list(toolchain_versions()) == ["pytest"]
