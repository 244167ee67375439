"""A stack in a process of its own, as a user starts it, for tests that look at it from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from olivepress.client import Client
from olivepress.connection import Connection

UP_WITHIN_S = 90.0
STOP_WITHIN_S = 60.0


class RunningStack:
    """`olivepress up` on a data directory."""

    def __init__(self, process: "subprocess.Popen[bytes]", data_dir: Path, log_file: Path) -> None:
        self.process = process
        self.data_dir = data_dir
        self.log_file = log_file

    def client(self) -> Client:
        """A client with the admin key."""
        found = Connection.discover(self.data_dir, environment={})
        return Client(found.url, found.key)

    def server(self) -> dict[str, Any]:
        """What server.json says."""
        values: dict[str, Any] = json.loads((self.data_dir / "server.json").read_text())
        return values

    def part(self, name: str) -> psutil.Process:
        """The process of one part, by the name under which `up` starts it."""
        for process in psutil.Process(self.process.pid).children():
            # One that has just ended has no command line any more.
            with suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if line.endswith(f"service {name}") or (name == "redis" and "redis-server" in line):
                    return process
        raise AssertionError(f"no part {name} runs")

    def family(self) -> list[psutil.Process]:
        """The stack's process and everything below it."""
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]

    def stop(self, number: int = signal.SIGINT) -> int:
        """Ask it to stop; gives its exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_WITHIN_S)


@contextmanager
def running_stack(
    data_dir: Path, root: Path, *options: str, executable: tuple[str, ...] = (sys.executable, "-m", "olivepress")
) -> Iterator[RunningStack]:
    """Start it, wait until its API answers, and see that it is gone at the end."""
    data_dir.mkdir(parents=True, exist_ok=True)
    log_file = data_dir / "up.log"
    command = [*executable, "up", "--api-port", "0", "--flower-port", "0", "--root", str(root), *options]
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"OLIVEPRESS_DATA_DIR": str(data_dir)}
        )
    stack = RunningStack(process, data_dir, log_file)
    try:
        wait_until(lambda: (data_dir / "server.json").exists() or process.poll() is not None, UP_WITHIN_S)
        assert process.poll() is None, log_file.read_text()
        yield stack
    finally:
        if process.poll() is None:
            stack.stop(signal.SIGTERM)


def wait_until(holds: Any, within_s: float, every_s: float = 0.1) -> None:
    """Look until it holds.

    Raises:
        AssertionError: it did not in time.
    """
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(every_s)


def still_running(processes: list[psutil.Process]) -> list[str]:
    """Those that live on (a zombie does not), as people read them."""
    alive = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(f"{process.pid} {' '.join(process.cmdline())}")
    return alive
