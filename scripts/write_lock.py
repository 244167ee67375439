"""Print requirements.lock: what is installed now, as constraints for pip."""

import subprocess
import sys

HEADER = """\
# Versions that were tested together; used by pip as constraints. Written by `make lock`.
"""
# These are of the environment, not of the product.
LEFT_OUT = ("pip==", "setuptools==", "wheel==", "-e ", "olivepress")


def main() -> None:
    """Print the lock."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--exclude-editable"], check=True, capture_output=True, text=True
    ).stdout
    lines = [line.partition("+cpu")[0] for line in listed.splitlines() if not line.startswith(LEFT_OUT)]
    sys.stdout.write(HEADER + "\n".join(sorted(lines, key=str.lower)) + "\n")


if __name__ == "__main__":
    main()
