"""A service over the doubles of the toolchain: `python -m tests.doubles worker|scheduler`.

Its name lets multiprocessing know that children need not import it again.
"""

import argparse
import importlib
import signal
import sys
from pathlib import Path

from tests.doubles import constants


def main() -> None:
    """Run one service until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("service", choices=["worker", "scheduler"])
    parser.add_argument("--lease", type=float, metavar="SECONDS", help="instead of the product's")
    parser.add_argument("--never-give-up", action="store_true", help="any number of attempts")
    parser.add_argument("--clock-jumps", type=int, metavar="SEED", help="the wall clock of this process is wrong")
    parser.add_argument("--full-while", type=Path, metavar="FILE", help="the store is full while this file exists")
    chosen = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if chosen.lease:
        constants.shorten(chosen.lease)
    if chosen.never_give_up:
        constants.never_give_up()
    # Only now, and by name: these modules take the constants as they are when they are imported.
    settings = importlib.import_module("olivepress.settings").Settings()
    importlib.import_module("olivepress.cli.service")._configure_logging(settings)
    if chosen.service == "scheduler":
        if chosen.lease:
            constants.shorten_scheduler(chosen.lease)
        importlib.import_module("scheduler.app").main(settings)
        return
    faults = importlib.import_module("tests.doubles.faults")
    if chosen.clock_jumps is not None:
        faults.let_the_clock_jump(chosen.clock_jumps)
    if chosen.full_while:
        faults.fill_the_disk_while(chosen.full_while, settings.store)
    code = importlib.import_module("workers.child").StepCode("tests.doubles.steps", "tests.doubles.preload")
    importlib.import_module("workers.app").serve(settings, code)


if __name__ == "__main__":
    sys.exit(main())
