"""The demo in small: trained, pressed, certified, installed, chatted with, and nothing left running."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.stack_cases import still_running, wait_until

pytestmark = [pytest.mark.toolchain, pytest.mark.timeout(600)]
DEMO = [sys.executable, "-m", "olivepress", "demo", "--size", "small", "--recipe", "cpu-int4"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the tests of this module: the family is trained by the first and kept for the others."""
    return tmp_path_factory.mktemp("demo")


@contextmanager
def started(data_dir: Path, *options: str) -> "Iterator[subprocess.Popen[str]]":
    environment = os.environ | {"OLIVEPRESS_DATA_DIR": str(data_dir)}
    with subprocess.Popen(
        [*DEMO, *options], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as demo:
        try:
            yield demo
        finally:
            demo.kill()


def part_of(demo: "subprocess.Popen[str]", name: str) -> Callable[[], psutil.Process | None]:
    def find() -> psutil.Process | None:
        for process in psutil.Process(demo.pid).children():
            # One that has just ended has no command line any more.
            with suppress(psutil.Error):
                if " ".join(process.cmdline()).endswith(f"service {name}"):
                    return process
        return None

    return find


def family_of(demo: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(demo.pid).children(recursive=True)


def test_the_family_becomes_certified_versions_that_answer_their_questions(data_dir: Path) -> None:
    with started(data_dir, "--json") as demo:
        output, errors = demo.communicate(timeout=500)
    assert demo.returncode == 0, errors
    told: dict[str, Any] = json.loads(output)
    jobs = told["batch"]["jobs"]
    assert len(jobs) == 3
    for job in jobs:
        assert job["state"] == "succeeded", job
        assert job["figures"]["certificate"] == "passed"
        assert job["figures"]["prompts_passed"] >= 0.8 * job["figures"]["prompts_with_expectation"] > 0
    assert told["chat"]
    assert all(exchange["answer"] for exchange in told["chat"])
    assert not (data_dir / "demo" / "server.json").exists()


@pytest.mark.parametrize("part", ["worker", "api", "scheduler"])
def test_when_a_part_dies_the_demo_says_which_and_leaves_no_process(data_dir: Path, part: str) -> None:
    # Another recipe in each run, so that there is work left when the part dies.
    with started(data_dir, "--recipe", "cpu-fp32") as demo:
        wait_until(part_of(demo, "worker"), 120)
        family = family_of(demo)
        process = part_of(demo, part)()
        assert process is not None
        process.send_signal(signal.SIGKILL)
        _, errors = demo.communicate(timeout=120)
    assert demo.returncode == 1
    assert f"{part} was killed by SIGKILL" in errors
    assert "Traceback" not in errors
    assert still_running(family) == []


def test_ctrl_c_ends_the_demo_and_leaves_no_process(data_dir: Path) -> None:
    with started(data_dir) as demo:
        wait_until(part_of(demo, "worker"), 120)
        family = family_of(demo)
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=120)
    assert demo.returncode == 130, errors
    assert "Traceback" not in errors
    assert still_running(family) == []
