"""Of a workspace nothing survives: neither its attempt, nor its worker, however that ended."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from workers.workspace import (
    LOCK_NAME,
    START_S,
    SWEEP_AGAIN_AFTER_S,
    SWEEP_EVERY_S,
    attempt_workspace,
    sweep,
    sweep_until,
    worker_directory,
)

DEADLINE_S = 30.0
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a worker locks its directory by flock")
# A worker with a running attempt, until it is killed.
WORKER = """
import sys
from pathlib import Path
from workers.workspace import attempt_workspace, worker_directory
with worker_directory(Path(sys.argv[1]), sys.argv[2]) as directory, attempt_workspace(directory, 7, 1) as workspace:
    (workspace.output / "model.onnx").write_bytes(b"half")
    print("works", flush=True)
    sys.stdin.read()
"""


def start_worker(workspaces: Path, worker_id: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WORKER, str(workspaces), worker_id]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "works\n"
    return worker


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def leftover(parent: Path, name: str) -> Path:
    directory = parent / name / "scratch"
    directory.mkdir(parents=True)
    (directory / "cache").write_bytes(b"x")
    return directory.parent


def test_an_attempts_workspace_is_gone_at_its_end(tmp_path: Path) -> None:
    with worker_directory(tmp_path / "workspaces", "w1") as own:
        with attempt_workspace(own, 7, 1) as workspace:
            (workspace.scratch / "cache").write_bytes(b"x")
            assert names(own) == {LOCK_NAME, "step-7-1"}
        assert names(own) == {LOCK_NAME}
    assert names(tmp_path / "workspaces") == set()


def test_a_living_worker_sweeps_what_one_beside_it_left_when_it_was_killed(tmp_path: Path) -> None:
    with worker_directory(tmp_path, "w1") as own:
        with start_worker(tmp_path, "w2") as other:
            assert sweep(tmp_path, own) == 0
            assert names(tmp_path / "w2") == {LOCK_NAME, "step-7-1"}
            other.kill()
        assert sweep(tmp_path, own) == 1
        assert names(tmp_path) == {"w1"}
        assert names(own) == {LOCK_NAME}


def test_a_starting_worker_sweeps_first(tmp_path: Path) -> None:
    with start_worker(tmp_path, "dead") as worker:
        worker.kill()

    with worker_directory(tmp_path, "w1"):
        assert names(tmp_path) == {"w1"}


def test_a_worker_that_has_not_locked_its_directory_yet_is_left_alone_until_it_must_be_dead(tmp_path: Path) -> None:
    starting = tmp_path / ".starting-w2"
    starting.mkdir()
    assert sweep(tmp_path) == 0

    os.utime(starting, (starting.stat().st_mtime - START_S - 1,) * 2)

    assert sweep(tmp_path) == 1
    assert names(tmp_path) == set()


def test_a_removal_that_was_killed_is_gone_on_with(tmp_path: Path) -> None:
    with worker_directory(tmp_path, "w1") as own:
        leftover(tmp_path, ".over-1")
        leftover(own, ".over-2")

        assert sweep(tmp_path, own) == 2

        assert names(own) == {LOCK_NAME}


def test_a_running_attempt_and_foreign_directories_stay(tmp_path: Path) -> None:
    leftover(tmp_path, "notes")
    with worker_directory(tmp_path, "w1") as own, attempt_workspace(own, 7, 1) as workspace:
        (tmp_path / "link").symlink_to(workspace.root)

        assert sweep(tmp_path, own) == 0

        assert workspace.output.exists()
    assert names(tmp_path) == {"notes", "link"}


def test_directories_that_a_tool_closed_to_their_owner_go_too(tmp_path: Path) -> None:
    with worker_directory(tmp_path, "w1") as own:
        with attempt_workspace(own, 7, 1) as workspace:
            closed = leftover(workspace.scratch, "closed")
            (closed / "scratch").chmod(0)
            closed.chmod(0o500)
        assert names(own) == {LOCK_NAME}


def test_a_worker_sweeps_again_and_again_until_it_stops(tmp_path: Path) -> None:
    with worker_directory(tmp_path, "w1") as own:
        stop = threading.Event()
        thread = threading.Thread(target=sweep_until, args=(stop, tmp_path, own, 0.01, 0.01))
        thread.start()
        try:
            for number in (1, 2):
                left = leftover(tmp_path, f".over-{number}")
                wait_until_gone(left)
        finally:
            stop.set()
            thread.join()
        assert not left.exists()


def test_a_worker_sweeps_again_soon_after_its_start(tmp_path: Path) -> None:
    # What a killed worker started may have held its lock while this one swept at its start.
    assert 0 < SWEEP_AGAIN_AFTER_S < SWEEP_EVERY_S
    with worker_directory(tmp_path, "w1") as own:
        stop = threading.Event()
        left = leftover(tmp_path, ".over-1")
        thread = threading.Thread(target=sweep_until, args=(stop, tmp_path, own, 0.01, 3600.0))
        thread.start()
        try:
            wait_until_gone(left)
        finally:
            stop.set()
            thread.join()


def wait_until_gone(path: Path) -> None:
    tick = threading.Event()
    for _ in range(int(DEADLINE_S / 0.01)):
        if not path.exists():
            return
        tick.wait(0.01)
    raise AssertionError(f"{path} is still there after {DEADLINE_S} s")
