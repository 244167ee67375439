"""How much of a stretch of work this process spent waiting for a processor that others had.

Unit: share of the time, 0 to 1. Source: proc_pid_schedstat in Linux's Documentation/scheduler/sched-stats.rst: the
nanoseconds that each thread ran, and those that it waited on a run queue. Elsewhere, and where the kernel does not
count, nothing is known and 0 is told.
"""

from contextlib import suppress
from pathlib import Path

TASKS = Path("/proc/self/task")


class Contention:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._ran, self._waited = _counts()

    def share(self) -> float:
        """Of what the threads of this process would have run since, the share that they waited."""
        ran, waited = _counts()
        # A thread that has ended takes its counts along.
        ran, waited = max(0, ran - self._ran), max(0, waited - self._waited)
        return waited / (ran + waited) if ran + waited else 0.0


def _counts() -> tuple[int, int]:
    ran = waited = 0
    with suppress(OSError):
        for task in TASKS.iterdir():
            with suppress(OSError, ValueError):
                numbers = (task / "schedstat").read_text(encoding="ascii").split()
                ran, waited = ran + int(numbers[0]), waited + int(numbers[1])
    return ran, waited
