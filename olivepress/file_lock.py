"""A lock between processes on one file, on Linux, macOS and Windows."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from olivepress.errors import ServiceUnavailable

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


TRY_EVERY_S = 0.05


@contextmanager
def exclusive(path: Path, *, wait_s: float, what: str) -> Iterator[None]:
    """Hold the lock on `path`, which is created where it is missing; only who holds it may remove it.

    The lock is flock(2), as Foundry Local takes it on its own index; on Windows an open handle keeps Foundry Local out.
    The system gives it back when this process ends, however that happens. `what` names what is locked, for the message.

    Raises:
        ServiceUnavailable: another process still holds it after `wait_s` seconds.
    """
    deadline = time.monotonic() + wait_s
    while True:
        descriptor = None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            _try_lock(descriptor)
            if _is_at(path, descriptor):
                break
            os.close(descriptor)  # its last holder has removed it, and another may hold a new one
        except (BlockingIOError, PermissionError) as error:
            if descriptor is None and sys.platform != "win32":
                raise
            if descriptor is not None:
                os.close(descriptor)
            if time.monotonic() >= deadline:
                message = f"{what} is in use by another process for more than {wait_s:.0f} s; wait for it and try again"
                raise ServiceUnavailable(message) from error
            time.sleep(TRY_EVERY_S)
    try:
        yield
    finally:
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
