"""What the end of a job that measured a version again says of that version: flags that come and go with it."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from olivepress.database.tables import JobRow, VersionRow
from olivepress.database.version_flags import flag, unflag
from olivepress.errors import BadArtifact, RuntimeCrashed
from olivepress.jobs import JobKind
from olivepress.registry import VersionFlag

# With these the model itself could not be run; anything else tells of the stack.
OF_THE_MODEL = frozenset({BadArtifact.__name__, RuntimeCrashed.__name__})


def conclude(session: Session, job: JobRow, failed: Sequence[dict[str, Any]]) -> None:
    """A validation of a version is over, with these failed gates.

    A recertification that failed flags the version, one that passed takes that flag away. Either kind of job that
    passed by the limits that the version was published with takes away that it was never validated.
    """
    if job.subject_version_id is None or job.cancel_requested:
        return
    is_recertified = job.kind == JobKind.RECERTIFY
    if failed:
        if is_recertified:
            names = ", ".join(gate["name"] for gate in failed)
            first = failed[0].get("note") or f"is {failed[0]['figure']}, the limit {failed[0]['limit']}"
            _flag(session, job, f"gates failed: {names} ({failed[0]['name']}: {first})")
        return
    if is_recertified:
        unflag(session, job.subject_version_id, VersionFlag.RECERTIFICATION_FAILED)
    if is_recertified or _has_first_limits(session, job):
        unflag(session, job.subject_version_id, VersionFlag.UNVALIDATED)


def conclude_broken(session: Session, job_id: int, error_class: str | None, message: str | None) -> None:
    """A job ended without a verdict; a version that could not be run when it was recertified is flagged, too."""
    job = session.get_one(JobRow, job_id)
    if job.kind == JobKind.RECERTIFY and error_class in OF_THE_MODEL and not job.cancel_requested:
        _flag(session, job, f"it could not be run: {message}")


def _flag(session: Session, job: JobRow, why: str) -> None:
    if job.subject_version_id is not None:
        runtime = (job.particulars or {}).get("runtime")
        flag(session, job.subject_version_id, VersionFlag.RECERTIFICATION_FAILED, f"job {job.id}, {runtime}: {why}")


def _has_first_limits(session: Session, job: JobRow) -> bool:
    """Whether the job's limits are those of the job that published the version."""
    version = session.get(VersionRow, job.subject_version_id)
    first = session.get(JobRow, version.job_id) if version is not None and version.job_id is not None else None
    return first is not None and first.recipe.get("gates") == job.recipe.get("gates")
