"""Ends work over a stranger's files that takes too much: a template that never ends, a pattern that explodes."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from olivepress.errors import BadCheckpoint

CPU_S = 10.0
MEMORY_BYTES = 2**30
# Again and again, for a library may swallow the first.
AGAIN_AFTER_S = 0.5


@contextmanager
def limited(problem: str, what_now: str, *, cpu_s: float = CPU_S, memory_bytes: int = MEMORY_BYTES) -> Iterator[None]:
    """Give this block so many seconds of CPU and so many bytes beside what the process has. Main thread only.

    CPU and not the clock, so that a busy machine refuses nothing.

    Raises:
        BadCheckpoint: it needed more.
    """

    def give_up(*_: object) -> None:
        raise BadCheckpoint(f"{problem} (it did not end within {cpu_s:g} s); {what_now}")

    handler = signal.signal(signal.SIGVTALRM, give_up)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + memory_bytes
    try:
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s, AGAIN_AFTER_S)
        yield
    except MemoryError:
        raise BadCheckpoint(f"{problem} (it asks for more than {memory_bytes / 2**20:,.0f} MiB); {what_now}") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
