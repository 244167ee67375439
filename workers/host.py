"""What this worker is: its identity, its toolchain and its hardware, as they enter keys and the workers table."""

import contextlib
import os
import platform
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from olivepress.database import signing_keys
from olivepress.database import workers as worker_rows
from olivepress.database.sessions import Session
from olivepress.database.unblocking import Offer
from olivepress.database.workers import WorkerFacts
from olivepress.errors import OlivepressError
from olivepress.evidence.signing import PublicKey, SigningKey
from olivepress.jobs import digest_of
from olivepress.process_identity import pid_space, started_at
from olivepress.settings import Settings
from workers.toolchains.versions import fingerprint_of, toolchain

# For the system, the worker itself and the forkserver's imports.
RESERVE_BYTES = 2 * 2**30


def describe(settings: Settings) -> WorkerFacts:
    """This process as a row of the workers table."""
    versions = toolchain()
    host = socket.gethostname()
    fingerprint = fingerprint_of(versions)
    machine = hardware()
    key = signing_key(settings)
    return WorkerFacts(
        id=f"{host}-{os.getpid()}-{secrets.token_hex(3)}",
        host=host,
        pid=os.getpid(),
        pid_started_at=started_at(os.getpid()),
        pid_space=pid_space(),
        pools=settings.pool_labels,
        slots=settings.slots,
        memory_bytes=0 if settings.publish_only else int(settings.memory or default_memory_bytes()),
        disk_free_bytes=disk_free_bytes(settings),
        fingerprint=fingerprint,
        timed_fingerprint=digest_of([fingerprint, machine["class"]]),
        hardware=machine,
        toolchain=versions,
        # The first warm child says it; see workers.app.
        architectures=[],
        signing_key=key.id if key else None,
    )


def offer_of(worker: WorkerFacts) -> Offer:
    """What the worker can claim, with the fingerprints that enter the keys."""
    return Offer(
        worker_id=worker.id,
        pools=tuple(worker.pools),
        allowance_bytes=worker.memory_bytes // worker.slots,
        fingerprint=worker.fingerprint,
        timed_fingerprint=worker.timed_fingerprint,
        signs=worker.signing_key is not None,
    )


def register(session: Session, settings: Settings, worker: WorkerFacts) -> None:
    """Add this worker to the workers table; once one with a key was there, what the stack publishes is signed."""
    worker_rows.register(session, worker)
    _note_key(session, signing_key(settings))


def report(session: Session, settings: Settings, worker_id: str) -> bool:
    """Say that this worker lives and what of it may have changed; False if the database does not know it."""
    key = signing_key(settings)
    _note_key(session, key)
    return worker_rows.seen(session, worker_id, disk_free_bytes(settings), key.id if key else None)


def signing_key(settings: Settings) -> PublicKey | None:
    """The key that this worker publishes with; None without one, and while its file cannot be used."""
    if settings.signing_key_file is None:
        return None
    try:
        return SigningKey.load(settings.signing_key_file).public
    except OlivepressError:
        return None


def _note_key(session: Session, key: PublicKey | None) -> None:
    if key is not None:
        signing_keys.note(session, key)


def default_memory_bytes() -> int:
    """What a worker offers unless told: the machine's memory (or its container's, if less) but a reserve."""
    total = min([psutil.virtual_memory().total, *_container_limits()])
    return total - min(RESERVE_BYTES, total // 4)


def disk_free_bytes(settings: Settings) -> int:
    """Room for workspaces."""
    settings.workspaces.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(settings.workspaces).free


def _container_limits() -> Iterator[int]:
    """Memory limits of the cgroup that this process sees as its root, version 2 and 1."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            yield int((Path("/sys/fs/cgroup") / name).read_text())


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
