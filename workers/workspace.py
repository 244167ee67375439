"""Directories in which attempts work; each is locked while its worker lives and swept when it does not."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LOCK_NAME = "worker.lock"


@dataclass(frozen=True)
class Workspace:
    """The directories of one attempt."""

    root: Path

    @property
    def output(self) -> Path:
        """What becomes the artifact."""
        return self.root / "output"

    @property
    def scratch(self) -> Path:
        """Caches, temporary files and HOME of the tools."""
        return self.root / "scratch"

    @property
    def inputs(self) -> Path:
        """Materialised artifacts of earlier steps, a directory each."""
        return self.root / "inputs"

    @property
    def log_file(self) -> Path:
        """What the step and its tools print."""
        return self.root / "attempt.log"


@contextmanager
def attempt_workspace(worker_directory: Path, step_id: int, fence: int) -> Iterator[Workspace]:
    """A fresh workspace; nothing of it survives."""
    workspace = Workspace(worker_directory / f"step-{step_id}-{fence}")
    try:
        for directory in (workspace.output, workspace.scratch, workspace.inputs):
            directory.mkdir(parents=True)
        yield workspace
    finally:
        shutil.rmtree(workspace.root, ignore_errors=True)


@contextmanager
def worker_directory(workspaces: Path, worker_id: str) -> Iterator[Path]:
    """This worker's own directory, locked for as long as it lives; those of dead workers are swept first."""
    workspaces.mkdir(parents=True, exist_ok=True)
    _sweep(workspaces)
    directory = workspaces / worker_id
    directory.mkdir()
    lock = os.open(directory / LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _sweep(workspaces: Path) -> None:
    for directory in workspaces.iterdir():
        try:
            lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(lock)
