"""What the processes below one use, read cheaply: from /proc where there is one, else by psutil."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

PROC = Path("/proc")
KIB = 1024
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGES_OF_A_PROCESS = "smaps_rollup"
# Of /proc/PID/status: memory that nothing but the end of the process, or swap, gives back.
ANONYMOUS = frozenset({"RssAnon", "RssShmem", "VmSwap"})
# Of /proc/PID/smaps_rollup: the same, each page divided by the number of processes that share it.
SHARED_OUT = frozenset({"Pss_Anon", "Pss_Shmem", "SwapPss"})


@dataclass(frozen=True)
class Member:
    """One living process."""

    pid: int
    started: int
    """In clock ticks since boot: with it a pid names one process for ever."""
    cpu_s: float


def descendants(root_pid: int) -> list[Member]:
    """All living processes below one, without it and without zombies."""
    if not PROC.joinpath("self").exists():
        return _descendants_by_psutil(root_pid)
    children: dict[int, list[Member]] = {}
    for name in os.listdir(PROC):  # noqa: PTH208 (a path object for each process would cost more than the rest)
        if name.isdigit():
            with contextlib.suppress(OSError):
                parent, member = _stat(int(name))
                if member is not None:
                    children.setdefault(parent, []).append(member)
    found: list[Member] = []
    waiting = [root_pid]
    while waiting:
        below = children.pop(waiting.pop(), [])
        found += below
        waiting += [member.pid for member in below]
    return found


def started_in(place: Path) -> list[Member]:
    """All living processes whose environment, as they were started with it, names this directory (Linux only).

    A process that got away from its parents still has the environment that it was given.
    """
    mark, found = os.fsencode(place), []
    if not PROC.joinpath("self").exists():
        return []
    for name in os.listdir(PROC):  # noqa: PTH208 (as above)
        if name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (PROC / name / "environ").read_bytes():
                    _, member = _stat(int(name))
                    found += [member] if member is not None else []
    return found


def is_same(member: Member) -> bool:
    """Whether the process lives on: its pid may be somebody else's by now."""
    try:
        _, now = _stat(member.pid)
    except OSError:
        return False
    return now is not None and now.started == member.started


def at_most_bytes(pids: Iterable[int]) -> int:
    """Memory of these processes that only their end gives back; what they share with others counts whole. Cheap."""
    return sum(_total(PROC / str(pid) / "status", ANONYMOUS, pid) for pid in pids)


def used_bytes(pids: Iterable[int]) -> int:
    """The same, and a page that several processes share counts once: the fair figure.

    Pages of files are left out: the kernel takes them back when it needs room. Costs the kernel a walk over the pages,
    about 20 ms for a gigabyte.
    """
    return sum(_total(PROC / str(pid) / PAGES_OF_A_PROCESS, SHARED_OUT, pid) for pid in pids)


def _total(file: Path, names: frozenset[str], pid: int) -> int:
    try:
        lines = file.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0 if PROC.joinpath("self").exists() else _rss(pid)
    except OSError:
        return _rss(pid)
    found = [line.split() for line in lines]
    values = [int(words[1]) for words in found if words and words[0].rstrip(":") in names]
    # Kernels before 5.4 do not tell files from memory there.
    return sum(values) * KIB if values else _rss(pid)


def _rss(pid: int) -> int:
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def _stat(pid: int) -> tuple[int, Member | None]:
    """The parent of a process, and the process unless it is a zombie. Source: proc_pid_stat(5)."""
    # The name in parentheses may hold anything, also parentheses.
    fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    if fields[0] in (b"Z", b"X"):
        return int(fields[1]), None
    cpu_s = sum(map(int, fields[11:15])) / TICKS_PER_S
    return int(fields[1]), Member(pid, int(fields[19]), cpu_s)


def _descendants_by_psutil(root_pid: int) -> list[Member]:
    found: list[Member] = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(root_pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    times = process.cpu_times()
                    started = round(process.create_time() * TICKS_PER_S)
                    found.append(Member(process.pid, started, times.user + times.system))
    return found
