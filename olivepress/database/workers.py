"""Which workers are there, and who holds a named lease such as the scheduler's leadership."""

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from olivepress.database.sessions import DatabaseNow, seconds_now
from olivepress.database.tables import LeaseRow, WorkerRow
from olivepress.database.upsert import upsert

SEEN_EVERY_S = 5.0
ALIVE_FOR_S = 30.0
# One that missed two reports is sent nothing, though it may only have met an outage.
SENT_TO_FOR_S = 2.5 * SEEN_EVERY_S
SCHEDULER_LEASE = "scheduler"


@dataclass(frozen=True)
class WorkerFacts:
    """What a worker says of itself when it starts."""

    id: str
    host: str
    pid: int
    pid_started_at: float
    pid_space: str
    pools: list[str]
    slots: int
    memory_bytes: int
    disk_free_bytes: int
    fingerprint: str
    timed_fingerprint: str
    hardware: dict[str, Any]
    toolchain: dict[str, Any]
    architectures: list[str]
    signing_key: str | None = None
    """The id of the key that it publishes with."""


def register(session: Session, worker: WorkerFacts) -> None:
    """Add a worker that starts."""
    now = seconds_now(session)
    session.add(WorkerRow(**asdict(worker), started_at=now, seen_at=now))


def warmed(session: Session, worker_id: str, architectures: list[str]) -> None:
    """Note what a worker's toolchain can build; known once its first child has run."""
    session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(architectures=architectures))


def seen(session: Session, worker_id: str, disk_free_bytes: int, signing_key: str | None = None) -> bool:
    """Note that a worker lives, how much room its workspaces have, and the key that it publishes with.

    Returns:
        False if it is not known (any more): the database may be one that was restored. It registers again.
    """
    values = {
        "seen_at": DatabaseNow(),
        "disk_free_bytes": disk_free_bytes,
        "signing_key": signing_key,
        "stopped_at": None,
    }
    known = update(WorkerRow).where(WorkerRow.id == worker_id).values(**values).returning(WorkerRow.id)
    return session.scalar(known) is not None


def stopped(session: Session, worker_id: str) -> None:
    """Note that a worker ended as it was asked to."""
    session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(stopped_at=DatabaseNow()))


def alive(session: Session, seen_within_s: float = ALIVE_FOR_S) -> list[WorkerRow]:
    """Workers that were seen lately and did not stop, those that only publish too."""
    query = select(WorkerRow).where(WorkerRow.stopped_at.is_(None), WorkerRow.seen_at > DatabaseNow() - seen_within_s)
    return list(session.scalars(query))


def pressing(session: Session) -> list[WorkerRow]:
    """Of the living workers those that run every kind of step, in children with a toolchain."""
    return [row for row in alive(session) if row.memory_bytes > 0]


def on_host(session: Session, host: str, pid_space: str) -> list[WorkerRow]:
    """Workers of a host that did not say that they stopped, and whose pids mean the same here as there."""
    query = select(WorkerRow).where(
        WorkerRow.host == host, WorkerRow.pid_space == pid_space, WorkerRow.stopped_at.is_(None)
    )
    return list(session.scalars(query))


def take_lease(session: Session, name: str, holder: str, lease_s: float) -> bool:
    """Get or keep a named lease; False while another holder's runs."""
    values = {"name": name, "holder": holder, "expires_at": DatabaseNow() + lease_s}
    statement = (
        upsert(session, LeaseRow)
        .values(values)
        .on_conflict_do_update(
            index_elements=["name"],
            set_=values,
            where=(LeaseRow.holder == holder) | (LeaseRow.expires_at < DatabaseNow()),
        )
        .returning(LeaseRow.holder)
    )
    return session.scalar(statement) == holder


def give_lease_back(session: Session, name: str, holder: str) -> None:
    """End an own lease early, so that the next holder need not wait for it."""
    session.execute(
        update(LeaseRow).where(LeaseRow.name == name, LeaseRow.holder == holder).values(expires_at=DatabaseNow())
    )
