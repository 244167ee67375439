"""What a step's child makes of progress, and what it keeps Python from leaving behind."""

import math
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.child import PLACES, Progress, _Reported

LEAVES_NOTHING = """
import multiprocessing, sys, uuid
from multiprocessing import resource_tracker
multiprocessing.set_start_method("forkserver")
from workers.child import _leave_nothing_elsewhere
_leave_nothing_elsewhere()
lock = multiprocessing.RLock()
# What has a name is told to a process that removes it some day.
print(resource_tracker._resource_tracker._fd, uuid.uuid1().node == uuid.uuid1().node, sys.dont_write_bytecode)
"""


def told(shares: list[float], phase: str = "build") -> list[float]:
    """What the worker hears of these shares."""
    ours, theirs = Pipe(duplex=False)
    report = _Reported(theirs)
    for share in shares:
        report(phase, share)
    theirs.close()
    return [message.share for message in _received(ours)]


def _received(connection: Connection) -> list[Progress]:
    messages = []
    try:
        while True:
            messages.append(connection.recv())
    except EOFError:
        return messages


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20))
def test_a_share_never_goes_back_nor_out_of_0_to_1(shares: list[float]) -> None:
    heard = told(shares)
    assert heard == sorted(heard)
    assert all(0.0 <= share <= 1.0 for share in heard)


def test_a_quantizer_that_counts_anew_changes_nothing_and_no_number_neither() -> None:
    assert told([0.0, 0.5, 0.2, 0.5, math.nan, 0.7, 1.5]) == [0.0, 0.5, 0.7, 1.0]


def test_a_new_phase_is_told_though_its_share_is_not_new() -> None:
    ours, theirs = Pipe(duplex=False)
    report = _Reported(theirs)
    report("build", 0.75)
    report("check", 0.5)
    theirs.close()
    assert _received(ours) == [Progress("build", 0.75), Progress("check", 0.75)]


@pytest.mark.skipif(sys.platform != "linux", reason="named semaphores are Linux's")
def test_neither_semaphores_nor_byte_code_nor_a_machines_address_are_left() -> None:
    command = [sys.executable, "-c", LEAVES_NOTHING]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "None True True"


def test_every_place_that_libraries_know_is_a_directory_of_its_own() -> None:
    assert {"HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "OLIVE_CACHE_DIR"} <= set(PLACES)
    assert len(set(PLACES.values())) == len(PLACES)
