"""Processes end with the process that started them, also when that is killed with -9.

As a command, `python -m olivepress.lifetime PID COMMAND …` becomes COMMAND, which the kernel ends with PID: for
programs that are not ours.
"""

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
WORKER_PID_VARIABLE = "OLIVEPRESS_WORKER_PID"
WATCH_EVERY_S = 0.5
# Windows has none, and clients import this there.
SIGKILL: int = getattr(signal, "SIGKILL", signal.SIGTERM)


def die_with_parent(parent_pid: int, number: int = SIGKILL) -> None:
    """Have the kernel send this process a signal (on Linux any, elsewhere it just ends) when `parent_pid` is gone.

    Source: prctl(2), PR_SET_PDEATHSIG. The parent may have died before the call, hence the check after it.
    The signal is sent when the *thread* that started this process ends, so parents must start children from a
    thread that lives as long as they do.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Whatever loses its parent below this process becomes its child, also in a session of its own (Linux only).

    Source: prctl(2), PR_SET_CHILD_SUBREAPER.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(WATCH_EVERY_S)
    os._exit(1)


def _become(parent_pid: str, *command: str) -> None:
    die_with_parent(int(parent_pid))
    os.execvp(command[0], command)


if __name__ == "__main__":
    _become(*sys.argv[1:])
