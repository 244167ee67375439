"""`make chaos`: a quiet run of what the seed orders, then one in which things go wrong; both must give the same."""

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.plan import make_plan
from tests.chaos.report import text_of
from tests.chaos.run import Outcome, run

LEASE_S = 4.0
SHOWN_PROBLEMS = 30


def main() -> int:
    """Exit code 1 if anything is wrong; what it left is kept then."""
    chosen = _arguments()
    print(f"seed {chosen.seed}, {chosen.database}, {chosen.minutes} min, lease {chosen.lease} s", flush=True)  # noqa: T201
    directory = Path(tempfile.mkdtemp(prefix="olivepress-chaos-"))
    # PostgreSQL may run as another user.
    directory.chmod(0o755)
    quiet_problems, expected = _expected(chosen, directory)
    outcome = _run(chosen, directory / "chaos", chosen.minutes * 60)
    outcome.problems += _differences(expected, outcome.packages)
    outcome.problems += [f"in the quiet run: {problem}" for problem in quiet_problems]
    print(text_of(outcome))  # noqa: T201
    if not outcome.problems:
        shutil.rmtree(directory)
        return 0
    for problem in outcome.problems[:SHOWN_PROBLEMS]:
        print(f"PROBLEM {problem}")  # noqa: T201
    print(f"seed {chosen.seed}; logs and rows are kept in {directory}")  # noqa: T201
    return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long things go wrong")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    parser.add_argument("--lease", type=float, default=LEASE_S, metavar="SECONDS")
    parser.add_argument("--quiet-run", type=Path, metavar="FILE", help="keep the quiet run's result here, or use it")
    return parser.parse_args()


def _run(chosen: argparse.Namespace, directory: Path, seconds: float) -> Outcome:
    directory.mkdir()
    directory.chmod(0o755)
    plan = make_plan(chosen.seed, chosen.minutes * 60, directory / "checkpoints")
    if not seconds:
        plan = plan.without_cancels()
    return run(directory, plan, chosen.database, chosen.seed, seconds, chosen.lease)


def _expected(chosen: argparse.Namespace, directory: Path) -> tuple[list[str], dict[str, str]]:
    """Problems and package digests of a run in which nothing goes wrong."""
    if chosen.quiet_run and chosen.quiet_run.exists():
        return [], dict(json.loads(chosen.quiet_run.read_text()))
    quiet = _run(chosen, directory / "quiet", 0.0)
    print(f"quiet run:\n{text_of(quiet)}", flush=True)  # noqa: T201
    if chosen.quiet_run and not quiet.problems:
        chosen.quiet_run.write_text(json.dumps(quiet.packages))
    return quiet.problems, quiet.packages


def _differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Packages that are not what the quiet run gave."""
    return [
        f"{content} became {digest}, in the quiet run {expected.get(content)}"
        for content, digest in found.items()
        if expected.get(content) != digest
    ]


if __name__ == "__main__":
    sys.exit(main())
