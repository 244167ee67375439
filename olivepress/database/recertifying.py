"""What decides whether a version is certified again: its certificate, the last recertification, the living workers."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from olivepress.database.remeasuring import RUNTIME
from olivepress.database.tables import AliasRow, JobRow, ModelRow, VersionRow
from olivepress.database.workers import pressing
from olivepress.jobs import JobId, JobKind, JobState


@dataclass(frozen=True)
class Recertification:
    """The last job that certified a version again, or is to."""

    job_id: JobId
    state: JobState
    runtime: str | None


@dataclass(frozen=True)
class Candidate:
    """A version that an alias points to."""

    version_id: int
    version: str
    team: str
    aliases: tuple[str, ...]
    certified_with: str | None
    """The runtime of the certificate that it was published with; None: it has none."""
    last: Recertification | None


def runtime_of_workers(session: Session) -> str | None:
    """The version of the runtime that every living worker has; None where none lives, or they do not agree."""
    found = {worker.toolchain.get(RUNTIME) for worker in pressing(session)}
    (runtime,) = found if len(found) == 1 else (None,)
    return runtime


def candidates(session: Session) -> list[Candidate]:
    """Every version that an alias points to and that is not deleted, oldest first."""
    query = (
        select(
            VersionRow.id,
            VersionRow.number,
            ModelRow.name,
            ModelRow.team,
            AliasRow.name.label("alias"),
            VersionRow.report[("certificate", "runtime", RUNTIME)].as_string().label("certified_with"),
        )
        .join(ModelRow, ModelRow.id == VersionRow.model_id)
        .join(AliasRow, AliasRow.version_id == VersionRow.id)
        .where(VersionRow.deleted_at.is_(None))
        .order_by(VersionRow.id, AliasRow.name)
    )
    last = _last(session)
    found: dict[int, Candidate] = {}
    for row in session.execute(query):
        known = found.get(row.id)
        found[row.id] = Candidate(
            version_id=row.id,
            version=f"{row.name}:{row.number}",
            team=row.team,
            aliases=(*(known.aliases if known else ()), row.alias),
            certified_with=row.certified_with,
            last=last.get(row.id),
        )
    return list(found.values())


def _last(session: Session) -> dict[int, Recertification]:
    """The last recertification of each version that had one."""
    newest = (
        select(func.max(JobRow.id).label("id"))
        .where(JobRow.kind == JobKind.RECERTIFY, JobRow.subject_version_id.is_not(None))
        .group_by(JobRow.subject_version_id)
        .subquery()
    )
    query = select(JobRow.subject_version_id, JobRow.id, JobRow.state, JobRow.particulars).join(
        newest, newest.c.id == JobRow.id
    )
    return {
        row.subject_version_id: Recertification(
            JobId(row.id), JobState(row.state), (row.particulars or {}).get("runtime")
        )
        for row in session.execute(query)
    }
