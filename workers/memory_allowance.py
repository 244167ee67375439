"""What a step may use of the machine's memory, and how that is held: by a cgroup, else by looking often.

A worker gives each of its slots an equal part of its memory, and that is the allowance of the child with all that it
starts. Where the worker owns a cgroup (version 2, delegated to it, as systemd does with Delegate=yes), each step runs
in one of its own and the kernel holds the limit. Elsewhere a thread reads what the processes use and ends the child
that uses more. The thread measures in both cases: the kernel's own peak counts cached pages of files too, and what a
step is predicted to need must be comparable with what it was seen to use (`process_tree.used_bytes`).
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog

from workers.process_tree import Member, at_most_bytes, descendants, used_bytes

LOOK_EVERY_S = 0.2
# Walking through all processes takes at most this share of a core, on a machine with however many.
WALK_SHARE = 0.02
# The exact figure is read when the cheap one, which is never less, has grown by this much or is beyond the allowance,
# and for at most these shares of the time: it takes longer the more memory there is. What stopped growing after less
# than that is read once more.
GROWN, GROWN_BYTES, SETTLED_BYTES = 1.02, 16 * 2**20, 2**20
READ_SHARE, READ_SHARE_WHEN_URGENT = 0.05, 0.2
NEAR = 0.8
LATELY_S = 1.0
HOST_IS_FULL_BELOW = 0.03
REMOVE_WITHIN_S = 2.0
VMSTAT = Path("/proc/vmstat")
log = structlog.get_logger(__name__)


@dataclass
class Grant:
    """The allowance of one step while it runs, and what it used of it."""

    name: str
    allowance_bytes: int
    group: Path | None = None
    """Its cgroup; None: the thread holds the limit."""
    kills_before: int = 0
    family: list[Member] = field(default_factory=list)
    """Its processes, as seen last."""
    peak_bytes: int = 0
    last_bytes: int = 0
    exceeded_bytes: int | None = None
    """What it used when it was ended for using too much."""
    looked_at: float = 0.0
    near_at: float | None = None
    """When it was last seen to use most of its allowance."""
    host_was_full: bool = False
    killed_in_group: int = 0

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the processes that were seen last."""
        return sum(member.cpu_s for member in self.family)

    @property
    def was_near(self) -> bool:
        """Whether it used most of its allowance shortly before it was looked at last.

        Not just then: a process that was killed gives its memory back piece by piece.
        """
        return self.near_at is not None and self.looked_at - self.near_at <= LATELY_S

    @property
    def kernel_killed(self) -> bool:
        """Whether the kernel ended a process for want of memory meanwhile: in its group, else anywhere on the host."""
        return self.killed_in_group > 0 or (self.group is None and _kills() > self.kills_before)


class MemoryAllowance:
    """The allowance of every step of a worker."""

    def __init__(self, allowance_bytes: int, groups: "ControlGroups | None" = None) -> None:
        self.allowance_bytes = allowance_bytes
        self._groups = groups
        self._watch = MemoryWatch()

    @contextmanager
    def granted(self, name: str) -> Iterator[Grant]:
        """The allowance for one step; its figures stay after the end."""
        grant = Grant(name, self.allowance_bytes, kills_before=_kills())
        if self._groups is not None:
            try:
                grant.group = self._groups.open(name, self.allowance_bytes)
            except OSError as error:
                log.warning("control_group_not_made", name=name, error=str(error), instead="watching the memory")
        try:
            yield grant
        finally:
            if self._groups is not None and grant.group is not None:
                grant.killed_in_group = self._groups.kills(grant.group)
                self._groups.remove(grant.group)

    @contextmanager
    def watched(self, grant: Grant, keeper_pid: int, kill: Callable[[], None]) -> Iterator[None]:
        """Meanwhile measure what runs below this process, and end it when it uses more than it may."""
        with self._watch.watching(_Watched(grant, keeper_pid, kill)):
            yield
        if self._groups is not None and grant.group is not None:
            grant.killed_in_group = self._groups.kills(grant.group)


def choose(allowance_bytes: int) -> MemoryAllowance:
    """The best way that this machine offers to hold the allowance; says in the log which."""
    groups = ControlGroups.delegated()
    held_by = f"cgroup {groups.base}" if groups else f"looking every {LOOK_EVERY_S} s"
    log.info("memory_allowance", each_step_bytes=allowance_bytes, held_by=held_by)
    return MemoryAllowance(allowance_bytes, groups)


class ControlGroups:
    """A cgroup of version 2 that this worker may divide. Source: the kernel's admin-guide/cgroup-v2, "Delegation"."""

    def __init__(self, base: Path) -> None:
        self.base = base

    @classmethod
    def delegated(
        cls, mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
    ) -> "ControlGroups | None":
        """The cgroup that this process is in, ready for one below it a step; None if it is not ours to divide.

        A cgroup that limits others may hold no process itself: ours go into a leaf beside the steps. With processes of
        somebody else in it, the kernel refuses.
        """
        try:
            line = next(line for line in own.read_text().splitlines() if line.startswith("0::"))
            base = mount / line.removeprefix("0::").lstrip("/")
            if "memory" not in (base / "cgroup.controllers").read_text().split():
                return None
        except (OSError, StopIteration):
            return None
        leaf = base / "supervisor"
        ours = {os.getpid(), *(member.pid for member in descendants(os.getpid()))}
        moved: list[int] = []
        try:
            leaf.mkdir(exist_ok=True)
            for pid in map(int, (base / "cgroup.procs").read_text().split()):
                if pid in ours:
                    (leaf / "cgroup.procs").write_text(str(pid))
                    moved.append(pid)
            (base / "cgroup.subtree_control").write_text("+memory")
        except OSError as error:
            log.info("control_group_not_ours", group=str(base), error=str(error))
            for pid in moved:
                with contextlib.suppress(OSError):
                    (base / "cgroup.procs").write_text(str(pid))
            with contextlib.suppress(OSError):
                leaf.rmdir()
            return None
        return cls(base)

    def open(self, name: str, limit_bytes: int) -> Path:
        """A new cgroup with this limit. Raises OSError where it cannot be made."""
        group = self.base / name
        group.mkdir(exist_ok=True)
        (group / "memory.max").write_text(str(limit_bytes))
        # All of a step ends at once, and no swap makes the limit a lie. Older kernels have neither.
        for file, value in {"memory.oom.group": "1", "memory.swap.max": "0"}.items():
            with contextlib.suppress(OSError):
                (group / file).write_text(value)
        return group

    def kills(self, group: Path) -> int:
        """How many of its processes the kernel ended because the limit was reached."""
        with contextlib.suppress(OSError):
            for line in (group / "memory.events").read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
        return 0

    def remove(self, group: Path) -> None:
        """End what is still in it, and remove it."""
        with contextlib.suppress(OSError):
            (group / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + REMOVE_WITHIN_S
        while True:
            try:
                group.rmdir()
            except FileNotFoundError:
                return
            except OSError as error:
                # The kernel needs a moment for what was killed.
                if time.monotonic() > deadline:
                    log.warning("control_group_left", group=str(group), error=str(error))
                    return
                time.sleep(0.01)
            else:
                return


@dataclass(eq=False)
class _Watched:
    grant: Grant
    keeper_pid: int
    kill: Callable[[], None]
    at_most_before: int = 0
    at_most_when_read: int = 0
    read_at: float = 0.0
    read_took_s: float = 0.0


class MemoryWatch:
    """The thread that looks; it rests while no step runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: list[_Watched] = []
        self._has_work = threading.Event()
        self._thread: threading.Thread | None = None
        self._walked_at = self._walk_took_s = 0.0

    @contextmanager
    def watching(self, watched: _Watched) -> Iterator[None]:
        """Look at it meanwhile."""
        with self._lock:
            self._watched.append(watched)
            self._has_work.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._watched.remove(watched)
                if not self._watched:
                    self._has_work.clear()

    def _run(self) -> None:
        while True:
            self._has_work.wait()
            with self._lock:
                self._look()
            time.sleep(LOOK_EVERY_S)

    def _look(self) -> None:
        memory = psutil.virtual_memory()
        is_full = memory.available < HOST_IS_FULL_BELOW * memory.total
        started = time.monotonic()
        must_walk = started - self._walked_at >= self._walk_took_s / WALK_SHARE
        if must_walk:
            self._walked_at = started
        for watched in self._watched:
            if must_walk or not watched.grant.family:
                watched.grant.family = descendants(watched.keeper_pid)
            watched.grant.host_was_full = is_full
        if must_walk:
            self._walk_took_s = time.monotonic() - started
        for watched in self._watched:
            _measure(watched)


def _measure(watched: _Watched) -> None:
    grant = watched.grant
    pids = [member.pid for member in grant.family]
    at_most = at_most_bytes(pids)
    has_grown = at_most > GROWN * watched.at_most_when_read + GROWN_BYTES
    has_settled = watched.at_most_when_read + SETTLED_BYTES < at_most <= watched.at_most_before
    watched.at_most_before = at_most
    may_be_over = at_most > grant.allowance_bytes
    share = READ_SHARE_WHEN_URGENT if has_grown and may_be_over else READ_SHARE
    now = time.monotonic()
    is_news = has_grown or has_settled or may_be_over or not grant.peak_bytes
    if is_news and now - watched.read_at >= watched.read_took_s / share:
        grant.last_bytes = used_bytes(pids)
        grant.peak_bytes = max(grant.peak_bytes, grant.last_bytes)
        watched.at_most_when_read, watched.read_at = at_most, now
        watched.read_took_s = time.monotonic() - now
    elif at_most < grant.last_bytes:
        grant.last_bytes = at_most
    grant.looked_at = now
    if grant.last_bytes >= NEAR * grant.allowance_bytes:
        grant.near_at = now
    if grant.group is None and grant.last_bytes > grant.allowance_bytes and grant.exceeded_bytes is None:
        grant.exceeded_bytes = grant.last_bytes
        watched.kill()


def _kills() -> int:
    """How many processes the kernel of this host has ended for want of memory."""
    with contextlib.suppress(OSError):
        for line in VMSTAT.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
