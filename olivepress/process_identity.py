"""Which process a pid means: the pid of one that ended may be another's by now, and in a container it means another."""

import contextlib
import os
import sys
from pathlib import Path

import psutil

# Two readings of one start may differ by the clock's resolution.
SAME_START_WITHIN_S = 1.0


def pid_space() -> str:
    """Where a pid means the same as here: containers and hosts of one name must not judge each other's processes."""
    parts = [str(psutil.boot_time())]
    with contextlib.suppress(OSError):
        parts = [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(Path("/proc/self/ns/pid").readlink())]
    return "/".join(parts)


def started_at(pid: int) -> float:
    """When a process started, in seconds: on Linux since the boot, so that no step of the clock changes it.

    Raises:
        psutil.NoSuchProcess: there is none.

    Source: proc_pid_stat(5), field 22; elsewhere seconds since 1970.
    """
    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    try:
        # The second field is a name in parentheses, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        raise psutil.NoSuchProcess(pid) from None
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def is_running(pid: int, start: float) -> bool:
    """Whether the process that had this pid and this start still runs; a zombie does not."""
    try:
        is_same = abs(started_at(pid) - start) <= SAME_START_WITHIN_S
        return is_same and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
