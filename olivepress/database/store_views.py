"""Which families the artifacts of the store belong to, and who writes to it now."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from olivepress.database.sessions import DatabaseNow
from olivepress.database.tables import JobRow, LeaseRow, StepRow, VersionRow
from olivepress.database.workers import SCHEDULER_LEASE, alive
from olivepress.jobs import StepKind


def families(session: Session) -> dict[str, str]:
    """Digest of a published artifact → family of its checkpoint.

    Of the package that it was made of, too, and of what its source said.
    """
    sources = (
        select(StepRow.artifact_digest, VersionRow.family)
        .join(JobRow, JobRow.id == StepRow.job_id)
        .join(VersionRow, VersionRow.id == JobRow.version_id)
        .where(StepRow.kind == StepKind.REFERENCE, StepRow.artifact_digest.is_not(None))
    )
    found: dict[str, str] = {digest or "": family for digest, family in session.execute(sources)}
    query = select(VersionRow.artifact_digest, VersionRow.package_digest, VersionRow.family)
    for artifact, package, family in session.execute(query):
        found |= {artifact: family, package: family}
    return found


def who_writes(session: Session) -> list[str]:
    """The living parts of the stack that may write to the store, in words; the API only reads."""
    leads = select(LeaseRow.holder).where(LeaseRow.name == SCHEDULER_LEASE, LeaseRow.expires_at > DatabaseNow())
    found = ["a scheduler"] if session.scalar(leads) is not None else []
    count = len(alive(session))
    return found + ([f"{count} workers" if count > 1 else "a worker"] if count else [])
