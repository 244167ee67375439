"""A short chaos run on each database: `make chaos` runs longer ones, with other seeds."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(240)
SEED = "11"
MINUTES = "0.2"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def quiet_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first run keeps what a quiet run gives; the second, on the other database, must give the same."""
    return tmp_path_factory.mktemp("quiet") / "packages.json"


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_nothing_is_lost_and_nothing_published_twice_when_parts_are_killed_at_random(
    database: str, quiet_run: Path
) -> None:
    options = ["--database", database, "--seed", SEED, "--minutes", MINUTES, "--quiet-run", str(quiet_run)]
    # In a process of its own: it mounts a small disk that only it and its children see.
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *options], cwd=ROOT, capture_output=True, text=True, timeout=220
    )
    print(done.stdout)  # noqa: T201 (shown where the test fails, and with -s)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
