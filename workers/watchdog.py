"""The thread that ends children whose lease nobody can be sure of any more. It does no I/O, so nothing can hold it up.

A heartbeat may hang for as long as a dead network likes; the attempt's own threads wait for it. This one only looks at
a clock and sends signals.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LOOK_EVERY_S = 0.5


@dataclass(eq=False)
class _Guarded:
    deadline: Callable[[], float]
    kill: Callable[[], None]


class Watchdog:
    """Kills what is guarded when its deadline, on the monotonic clock, has passed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guarded: list[_Guarded] = []
        self._has_work = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def guard(self, deadline: Callable[[], float], kill: Callable[[], None]) -> Iterator[None]:
        """Meanwhile, call `kill` (again and again) once the clock is past `deadline()`. Neither may wait for anything.

        The deadline may move while it is watched.
        """
        guarded = _Guarded(deadline, kill)
        with self._lock:
            self._guarded.append(guarded)
            self._has_work.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._guarded.remove(guarded)
                if not self._guarded:
                    self._has_work.clear()

    def _watch(self) -> None:
        while True:
            self._has_work.wait()
            # The lock is held while killing: what was let go of is not killed afterwards.
            with self._lock:
                for guarded in self._guarded:
                    if time.monotonic() >= guarded.deadline():
                        guarded.kill()
            time.sleep(LOOK_EVERY_S)
