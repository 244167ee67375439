"""The memory of a step: in cgroups, by a double of their directory tree (few machines give any away), or by looking."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from workers import memory_allowance
from workers.memory_allowance import ControlGroups, Grant, MemoryAllowance
from workers.process_tree import at_most_bytes, descendants, is_same, used_bytes

MIB = 2**20
WITHIN_S = 20.0


class Tree:
    """A cgroup file system of plain files; a group's own files go with its directory, as the kernel's do."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mount, self.own = root / "cgroup", root / "own"
        self.base = self.mount / "system.slice/olivepress.service"
        self.base.mkdir(parents=True)
        self.own.write_text("1:name=systemd:/elsewhere\n0::/system.slice/olivepress.service\n")
        (self.base / "cgroup.controllers").write_text("cpu io memory pids\n")
        (self.base / "cgroup.procs").write_text(f"{os.getpid()}\n")
        monkeypatch.setattr(Path, "rmdir", shutil.rmtree)

    def delegated(self) -> ControlGroups | None:
        return ControlGroups.delegated(self.mount, self.own)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    return Tree(tmp_path, monkeypatch)


def test_the_worker_moves_into_a_leaf_and_hands_memory_down(tree: Tree) -> None:
    groups = tree.delegated()
    assert groups is not None and groups.base == tree.base
    assert (tree.base / "supervisor/cgroup.procs").read_text() == str(os.getpid())
    assert (tree.base / "cgroup.subtree_control").read_text() == "+memory"


def test_processes_of_others_are_left_where_they_are(tree: Tree) -> None:
    (tree.base / "cgroup.procs").write_text("1\n")
    assert tree.delegated() is not None
    assert not (tree.base / "supervisor/cgroup.procs").exists()


def test_a_group_that_others_share_is_left_as_it_was(tree: Tree) -> None:
    # What the kernel does with EBUSY: the file refuses.
    (tree.base / "cgroup.subtree_control").mkdir()
    assert tree.delegated() is None
    assert (tree.base / "cgroup.procs").read_text() == str(os.getpid())
    assert not (tree.base / "supervisor").exists()


@pytest.mark.parametrize("controllers", ["cpu io pids\n", None])
def test_without_the_memory_controller_there_is_none(tree: Tree, controllers: str | None) -> None:
    (tree.base / "cgroup.controllers").unlink()
    if controllers:
        (tree.base / "cgroup.controllers").write_text(controllers)
    assert tree.delegated() is None


def test_version_1_alone_gives_none(tree: Tree) -> None:
    tree.own.write_text("4:memory:/somewhere\n")
    assert tree.delegated() is None


def test_each_step_has_a_group_with_its_limit_that_is_gone_afterwards(tree: Tree) -> None:
    groups = tree.delegated()
    with MemoryAllowance(5 * MIB, groups).granted("step-7-1") as grant:
        assert grant.group == tree.base / "step-7-1"
        files = {file.name: file.read_text() for file in grant.group.iterdir()}
        assert files == {"memory.max": str(5 * MIB), "memory.oom.group": "1", "memory.swap.max": "0"}
        (grant.group / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 1\n")
    assert grant.killed_in_group == 2
    assert grant.kernel_killed
    assert not (tree.base / "step-7-1").exists()


def test_where_a_group_cannot_be_made_the_thread_holds_the_limit(tree: Tree) -> None:
    groups = tree.delegated()
    (tree.base / "step-7-1").write_text("in the way")
    with MemoryAllowance(5 * MIB, groups).granted("step-7-1") as grant:
        assert grant.group is None


def test_a_kill_by_the_kernel_is_seen_in_its_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = tmp_path / "vmstat"
    monkeypatch.setattr(memory_allowance, "VMSTAT", counter)
    counter.write_text("pgfault 5\noom_kill 3\n")
    with MemoryAllowance(MIB).granted("step-7-1") as grant:
        assert not grant.kernel_killed
        counter.write_text("pgfault 9\noom_kill 4\n")
        assert grant.kernel_killed


def test_shortly_before_counts_as_near() -> None:
    grant = Grant("x", 100)
    assert not grant.was_near
    grant.near_at, grant.looked_at = 10.0, 10.5
    assert grant.was_near
    grant.looked_at = 12.0
    assert not grant.was_near


HOLDS_AND_FORKS = """
import os, sys
block = bytearray(64 * 2**20)
for place in range(0, len(block), 4096):
    block[place] = 1
for _ in range(2):
    # A fork makes no forks of its own: there are three that share from the moment on at which "ready" is said.
    if os.fork() == 0:
        os.read(0, 1)
        os._exit(0)
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def holding() -> Iterator[int]:
    """A process that holds 64 MiB and shares them with forks; gives its pid."""
    command = [sys.executable, "-c", HOLDS_AND_FORKS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.stdin.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_forks_share_counts_once() -> None:
    with holding() as pid:
        family = descendants(os.getpid())
        pids = [member.pid for member in family if member.pid == pid or member.pid in _below(pid)]
        assert len(pids) == 3
        assert 64 * MIB <= used_bytes(pids) < 100 * MIB
        assert at_most_bytes(pids) >= 3 * 64 * MIB
        assert all(map(is_same, family))
    assert not any(is_same(member) for member in family if member.pid == pid)


def _below(pid: int) -> set[int]:
    return {member.pid for member in descendants(pid)}


GROWS = """
import sys
block = bytearray(b"x") * (64 * 2**20)
print("holds", flush=True)
sys.stdin.readline()
more = bytearray(b"x") * (10 * 2**20)
print("holds more", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_last_little_growth_is_in_the_peak_too() -> None:
    command = [sys.executable, "-c", GROWS]
    with (
        MemoryAllowance(2**40).granted("step-7-1") as grant,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
        MemoryAllowance(2**40).watched(grant, os.getpid(), process.kill),
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "holds\n"
            wait_until(lambda: grant.peak_bytes >= 64 * MIB)
            before = grant.peak_bytes
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "holds more\n"
            wait_until(lambda: grant.peak_bytes >= before + 10 * MIB)
        finally:
            process.kill()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {WITHIN_S} s"
        time.sleep(0.02)
