"""Services as processes that a test starts, kills, stops and starts again; each ends with the test's own process."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[2]
LIFETIME = [sys.executable, "-m", "olivepress.lifetime"]
STOP_WITHIN_S = 20.0
API_WITHIN_S = 30.0
ADMIN_KEY = "the-admin-key"


class Service:
    """One process, and the next one after that was killed. Start it from a thread that outlives it."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log_file: Path) -> None:
        self.name, self.log_file = name, log_file
        self.command, self.environment = command, dict(environment)
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        """By the monotonic clock."""

    def start(self) -> None:
        """Start it; it must not run."""
        assert not self.is_running, f"{self.name} runs already"
        self.started_at = time.monotonic()
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*LIFETIME, str(os.getpid()), *self.command],
                env=self.environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process.

        Raises:
            AssertionError: it does not run.
        """
        assert self.process is not None and self.is_running, f"{self.name} does not run:\n{self.last_lines()}"
        return self.process.pid

    def family(self) -> list[psutil.Process]:
        """The process and all below it, as they are now."""
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except (psutil.NoSuchProcess, AssertionError):
            return []

    def kill(self) -> None:
        """Kill it with -9, and nothing else of it. Not running: nothing."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal; not running: nothing."""
        if self.process is not None and self.is_running:
            self.process.send_signal(number)

    def stop(self) -> int | None:
        """Ask it to end and wait; gives its exit code, None if it had to be killed."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> int | None:
        """Wait for the end that it was asked for; gives its exit code, None if it had to be killed."""
        if self.process is None:
            return 0
        try:
            return self.process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def has_ended_well(self, code: int | None) -> bool:
        """Whether this is the end of a service that was asked for it; one that still starts may die of SIGTERM."""
        is_new = time.monotonic() - self.started_at < STOP_WITHIN_S
        return code == 0 or (code == -signal.SIGTERM and is_new)

    def last_lines(self, count: int = 15) -> str:
        """The end of its log."""
        if not self.log_file.exists():
            return ""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-count:])


def environment(
    data_dir: Path, database_url: str, redis_url: str, checkpoints: Path, **settings: str
) -> dict[str, str]:
    """The variables of all services of one stack; `settings` are OLIVEPRESS_* by their names in small letters."""
    own = {
        "data_dir": str(data_dir),
        "database_url": database_url,
        "redis_url": redis_url,
        "checkpoint_roots": str(checkpoints),
        "admin_key": ADMIN_KEY,
        # Doubles need little; what their sizes predict must fit.
        "memory": "32GiB",
        **settings,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OLIVEPRESS_")}
    return inherited | {f"OLIVEPRESS_{name.upper()}": value for name, value in own.items()}


def product(service: str) -> list[str]:
    """The command of a service as it is in production."""
    return [sys.executable, "-m", "olivepress", "service", service]


def double(service: str, *options: str) -> list[str]:
    """The command of a service over the doubles."""
    return [sys.executable, "-m", "tests.doubles", service, *options]


def wait_for_api(url: str, api: Service) -> None:
    """Until the API answers that the stack is alive.

    Raises:
        AssertionError: it ended, or did not in time; with its log.
    """
    deadline = time.monotonic() + API_WITHIN_S
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/healthz", timeout=2, trust_env=False).status_code == httpx.codes.OK:
                return
        assert api.is_running and time.monotonic() < deadline, f"the API does not answer:\n{api.last_lines()}"
        time.sleep(0.05)
