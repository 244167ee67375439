"""Install PyTorch's CPU build into the environment that runs this.

On Linux the default index holds the CUDA build. So: OLIVEPRESS_TORCH_INDEX where it is set, else PyTorch's public CPU
index where it answers, else whatever index pip is configured with.
"""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
ANSWERS_WITHIN_S = 10


def pinned() -> str:
    """The version of the lock file: `torch==…`."""
    lock = Path(__file__).parent.parent / "requirements.lock"
    return next(line for line in lock.read_text().splitlines() if line.startswith("torch=="))


def chosen_index() -> str | None:
    """The index to ask; None: pip's own."""
    if index := os.environ.get("OLIVEPRESS_TORCH_INDEX"):
        return index
    if sys.platform != "linux":
        return None
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=ANSWERS_WITHIN_S):
            return CPU_INDEX
    except (urllib.error.URLError, OSError):
        return None


def main() -> int:
    """Install; returns pip's exit code."""
    index = chosen_index()
    where = ["--index-url", index] if index else []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *where, pinned()]
    return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(main())
