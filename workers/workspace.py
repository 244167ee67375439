"""Directories in which attempts work; what nobody works in any more is swept.

    WORKER/worker.lock          locked while the worker lives, however it ends
    WORKER/step-7-2/…           the workspace of one attempt: step 7, fence 2
    .starting-WORKER            a worker that has not locked its directory yet
    .over-…                     beside either: nobody works in it, and it is being removed

What is over gets that name before it is removed, so a removal that was killed or met a file it could not delete is
gone on with by the next sweep.
"""

import contextlib
import fcntl
import itertools
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

LOCK_NAME = "worker.lock"
SWEEP_EVERY_S = 600.0
# Processes of a worker that was killed hold its lock for a moment longer: who starts in its place sweeps once more.
SWEEP_AGAIN_AFTER_S = 5.0
# Between making its directory and locking it a worker needs no measurable time.
START_S = 600.0
_STARTING, _OVER = ".starting-", ".over-"
log = structlog.get_logger(__name__)


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
        _remove(workspace.root)


@contextmanager
def worker_directory(workspaces: Path, worker_id: str) -> Iterator[Path]:
    """This worker's own directory, locked for as long as it lives; those of dead workers are swept first."""
    workspaces.mkdir(parents=True, exist_ok=True)
    sweep(workspaces)
    directory = workspaces / worker_id
    lock = _locked_directory(directory, workspaces / f"{_STARTING}{worker_id}")
    try:
        yield directory
    finally:
        _remove(directory)
        os.close(lock)


def sweep(workspaces: Path, own: Path | None = None) -> int:
    """Removes what nobody works in: directories of dead workers of this host, and what is over.

    Args:
        own: the directory of the worker that asks; what its ended attempts could not remove is tried again.

    Returns:
        How many directories went.
    """
    swept = 0
    for parent in filter(None, (workspaces, own)):
        for directory in _directories(parent):
            if directory.name.startswith(_OVER) or (parent == workspaces and _is_abandoned(directory)):
                swept += _remove(directory)
    return swept


def sweep_until(
    stop: threading.Event,
    workspaces: Path,
    own: Path,
    first_s: float = SWEEP_AGAIN_AFTER_S,
    every_s: float = SWEEP_EVERY_S,
) -> None:
    """Sweeps soon and then now and then until told to stop: the target of a thread of its own, for removing takes long.

    Args:
        first_s: the seconds before the first one.
        every_s: the seconds between later ones.
    """
    waits = itertools.chain([first_s], itertools.repeat(every_s))
    while not stop.wait(next(waits)):
        try:
            if swept := sweep(workspaces, own):
                log.info("workspaces_swept", directories=swept)
        except OSError as error:  # a disk that is away for a moment
            log.warning("workspaces_not_swept", error=str(error))


def _locked_directory(directory: Path, starting: Path) -> int:
    """Makes the directory, which appears with its lock held: a sweep beside it must not take it for a dead one's."""
    starting.mkdir()
    lock = os.open(starting / LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    starting.rename(directory)
    return lock


def _directories(parent: Path) -> list[Path]:
    try:
        return [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]
    except FileNotFoundError:
        return []


def _is_abandoned(directory: Path) -> bool:
    """Whether its worker is dead. What is no worker's directory stays."""
    if directory.name.startswith(_STARTING):
        with contextlib.suppress(FileNotFoundError):
            return time.time() - directory.stat().st_mtime >= START_S
        return False
    try:
        lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _remove(directory: Path) -> bool:
    """Removes a directory as far as that can be done; True if it went."""
    over = directory.with_name(f"{_OVER}{secrets.token_hex(6)}")
    try:
        directory.rename(over)
    except FileNotFoundError:  # another sweep was faster
        return False
    shutil.rmtree(over, ignore_errors=True)
    if over.exists():
        _permit_removal(over)
        shutil.rmtree(over, ignore_errors=True)
    return not over.exists()


def _permit_removal(directory: Path) -> None:
    """Tools make directories that even their owner may not change."""
    directory.chmod(stat.S_IRWXU)
    for root, names, _ in os.walk(directory):  # from the top: what was just permitted is walked next
        for path in (Path(root, name) for name in names):
            if not path.is_symlink():
                with contextlib.suppress(OSError):
                    path.chmod(stat.S_IRWXU)
