"""Ends work over a stranger's files that takes too much: a template that never ends, a pattern that explodes."""

import resource
import signal
from collections.abc import Callable
from typing import TypeVar

import psutil

from olivepress.errors import BadCheckpoint

CPU_S = 5.0
MEMORY_BYTES = 2**30
# Again and again, for a library may swallow the first.
AGAIN_AFTER_S = 0.5


Answer = TypeVar("Answer")


def within_limits(work: Callable[[], Answer], problem: str, what_now: str) -> Answer:
    """What `work` gives, within CPU_S seconds of CPU and MEMORY_BYTES beside what the process has. Main thread only.

    CPU and not the clock, so that a busy machine refuses nothing.

    Raises:
        BadCheckpoint: it needed more.
    """

    def give_up(*_: object) -> None:
        raise BadCheckpoint(f"{problem} (it did not end within {CPU_S:g} s); {what_now}")

    handler = signal.signal(signal.SIGVTALRM, give_up)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + MEMORY_BYTES
    try:
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S, AGAIN_AFTER_S)
        return work()
    except MemoryError:
        # Told below: an error that came of a MemoryError counts as a worker's lack of memory, and is tried again.
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)
    raise BadCheckpoint(f"{problem} (it asks for more than {MEMORY_BYTES / 2**20:,.0f} MiB); {what_now}")
