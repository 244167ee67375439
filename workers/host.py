"""What this worker is: its identity, its toolchain and its hardware, as they enter keys and the workers table."""

import os
import platform
import secrets
import socket
from pathlib import Path
from typing import Any

import psutil

from olivepress.database.unblocking import Offer
from olivepress.database.workers import WorkerFacts
from olivepress.jobs import digest_of
from olivepress.settings import Settings
from workers.toolchains.versions import toolchain_versions


def describe(settings: Settings) -> WorkerFacts:
    """This process as a row of the workers table."""
    toolchain = toolchain_versions() | {"python": platform.python_version()}
    host = socket.gethostname()
    return WorkerFacts(
        id=f"{host}-{os.getpid()}-{secrets.token_hex(3)}",
        host=host,
        pid=os.getpid(),
        pid_started_at=psutil.Process().create_time(),
        pool=settings.pool,
        slots=settings.slots,
        memory_bytes=psutil.virtual_memory().total,
        fingerprint=digest_of([toolchain, platform.system(), platform.machine()]),
        hardware=hardware(),
        toolchain=toolchain,
        # The first warm child says it; see workers.app.
        architectures=[],
    )


def offer_of(worker: WorkerFacts) -> Offer:
    """What the worker can claim, with the fingerprints that enter the keys."""
    return Offer(
        worker_id=worker.id,
        pool=worker.pool,
        fingerprint=worker.fingerprint,
        timed_fingerprint=digest_of([worker.fingerprint, worker.hardware["class"]]),
    )


def hardware() -> dict[str, Any]:
    """Processor, cores and memory; `class` is the short text that timing gates and keys refer to."""
    processor = _processor_name()
    cores = os.cpu_count() or 1
    memory_gib = round(psutil.virtual_memory().total / 2**30)
    return {
        "processor": processor,
        "cores": cores,
        "memory_bytes": psutil.virtual_memory().total,
        "class": f"{processor} / {cores} cores / {memory_gib} GiB",
    }


def _processor_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def is_gone(worker_pid: int, pid_started_at: float) -> bool:
    """Whether the process of a worker of this host has ended (its pid may be somebody else's by now)."""
    try:
        return abs(psutil.Process(worker_pid).create_time() - pid_started_at) > 1.0
    except psutil.NoSuchProcess:
        return True
