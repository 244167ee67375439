"""Whether a process is still the one that was noted."""

import os
import subprocess
import sys

from olivepress.process_identity import is_running, pid_space, started_at


def test_a_process_is_known_by_its_pid_and_its_start() -> None:
    assert is_running(os.getpid(), started_at(os.getpid()))
    assert not is_running(os.getpid(), started_at(os.getpid()) - 60)


def test_a_process_that_ended_does_not_run_also_while_nobody_has_collected_it() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = started_at(process.pid)
    assert is_running(process.pid, start)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_running(process.pid, start)
    process.communicate()
    assert not is_running(process.pid, start)


def test_the_place_of_pids_is_the_same_for_all_processes_of_a_host() -> None:
    code = "from olivepress.process_identity import pid_space; print(pid_space())"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert other.stdout.strip() == pid_space()
