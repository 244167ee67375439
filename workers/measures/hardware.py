"""The machine that measured, without its name: figures of time hold only on hardware like it."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import psutil

CPUINFO = Path("/proc/cpuinfo")


def describe_hardware() -> dict[str, Any]:
    """{"cpu": model, "machine": architecture, "system": name, "cores": usable by this process, "memory_bytes": int,
    "class": what limits of time name, as the workers table has it}"""
    return {
        "cpu": _cpu_name(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": _usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "class": hardware_class(),
    }


def hardware_class() -> str:
    """Processor, cores and memory in a short text. The same words as workers.host writes into the workers table."""
    memory_gib = round(psutil.virtual_memory().total / 2**30)
    return f"{_cpu_name()} / {os.cpu_count() or 1} cores / {memory_gib} GiB"


def _usable_cores() -> int:
    """Not os.cpu_count(): a container or taskset may leave fewer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", CPUINFO.read_text(errors="replace"), flags=re.MULTILINE)
    except OSError:
        match = None
    return " ".join(match[1].split()) if match else platform.processor() or platform.machine()
