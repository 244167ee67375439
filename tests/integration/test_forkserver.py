"""The forkserver starts wherever the worker does."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CODE = """
if __name__ == "__main__":
    from workers.child import StepCode
    from workers.child_process import describe_toolchain, start_forkserver

    code = StepCode(steps="tests.doubles.steps", preload="tests.doubles.preload")
    start_forkserver(code)
    print(*describe_toolchain(code))
"""


def test_a_worker_starts_under_a_temporary_directory_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    script, deep = tmp_path / "start.py", tmp_path / ("x" * 120)
    script.write_text(CODE)
    deep.mkdir()
    environment = os.environ | {"TMPDIR": str(deep), "PYTHONPATH": str(REPOSITORY)}
    started = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    assert started.stdout.strip() == "DoubleForCausalLM", started.stderr
