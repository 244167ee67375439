"""Processes that got away from their parents are found by the environment that they were started with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.process_tree import started_in


@pytest.mark.skipif(sys.platform != "linux", reason="/proc has the environments")
def test_a_process_in_a_session_of_its_own_is_found_by_the_directory_that_its_environment_names(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "input()"]
    variables = os.environ | {"TMPDIR": str(tmp_path / "scratch" / "tmp")}
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, start_new_session=True) as away:
        with subprocess.Popen(command, stdin=subprocess.PIPE) as other:
            found = {member.pid for member in started_in(tmp_path / "scratch")}
            other.communicate()
        away.communicate()
    assert found == {away.pid}
    assert started_in(tmp_path / "scratch") == []
