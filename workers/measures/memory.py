"""Memory of this process, in bytes.

Resident set size (RSS): the part of the process that lies in RAM, the Python interpreter and the engine's libraries
(about 60 MB) included; nothing is subtracted. It is meant to be taken in a process that does nothing else: see
workers.measures.clean_process.
"""

import re
from pathlib import Path

import psutil

STATUS = Path("/proc/self/status")
KIB = 1024


def rss_bytes() -> int:
    """RSS now. Source: proc_pid_status(5), VmRSS; elsewhere psutil."""
    if STATUS.exists():
        return _status("VmRSS")
    return int(psutil.Process().memory_info().rss)


def peak_rss_bytes() -> int:
    """The highest RSS since this program began.

    Source: proc_pid_status(5), VmHWM. Not getrusage(2): its ru_maxrss survives exec, so a process that a large one
    started would report the large one's memory.
    """
    if STATUS.exists():
        return _status("VmHWM")
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


def _status(field: str) -> int:
    match = re.search(
        rf"^{field}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii", errors="replace"), flags=re.MULTILINE
    )
    if match is None:
        raise RuntimeError(f"{STATUS} has no {field}")
    return int(match[1]) * KIB
