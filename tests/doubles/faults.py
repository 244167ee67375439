"""Faults inside the worker's own process: a clock that jumps, a disk that is full."""

import errno
import os
import random
import time
from pathlib import Path

LARGEST_JUMP_S = 3600.0


def let_the_clock_jump(seed: int, every_s: float = 1.0) -> None:
    """From now on `time.time` steps forth and back by up to an hour; `time.monotonic` does not."""
    chance, real = random.Random(seed), time.time
    jumped = {"at": time.monotonic(), "by": 0.0}

    def jumping() -> float:
        now = time.monotonic()
        if now - jumped["at"] >= every_s:
            jumped.update(at=now, by=chance.uniform(-LARGEST_JUMP_S, LARGEST_JUMP_S))
        return real() + jumped["by"]

    time.time = jumping


def fill_the_disk_while(flag: Path, store: Path) -> None:
    """While the flag file exists, no file in the store reaches the disk: "no space left".

    A double of a full disk, for where the tests may not mount a small one.
    """
    real, inside = os.fsync, store.resolve()

    def fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        if flag.exists() and target.is_relative_to(inside) and not target.is_dir():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        real(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
