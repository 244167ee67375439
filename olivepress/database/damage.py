"""Who needs an artifact that the store has lost, and the repair job that makes its content again."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import inspect, or_, select
from sqlalchemy.orm import Session

from olivepress.database.deletion import has_files
from olivepress.database.new_steps import steps_from_ingest
from olivepress.database.sessions import seconds_now
from olivepress.database.tables import (
    AliasRow,
    BatchRow,
    JobRow,
    ModelRow,
    RememberedRow,
    StepRow,
    VersionRow,
    WorkerRow,
)
from olivepress.database.unblocking import done_steps, job_facts
from olivepress.database.version_flags import flag, unflag
from olivepress.database.workers import pressing
from olivepress.jobs import FINAL_JOB_STATES, JobKind, JobState, StepKind, StepState
from olivepress.registry import VersionFlag
from olivepress.steps import ONCE_A_JOB, ingest_location, key_of

MADE_AGAIN = (StepKind.INGEST, StepKind.QUANTIZE, StepKind.CONVERT, StepKind.PACKAGE)
"""The steps of a repair job: pure ones, so the same keys give the same bytes."""
ASKED_AGAIN = (StepKind.INGEST, StepKind.REFERENCE)
"""The steps of one that makes again what the source of a version said."""

# What a repair job does not take over: its own life, and what is over (the ladder was climbed, the team has the bytes).
_OWN = {
    *("id", "batch_id", "state", "is_fresh", "cancel_requested", "created_at", "finished_at"),
    *("error_class", "error_message", "version_id", "ladder", "predicted_bytes"),
}


@dataclass(frozen=True)
class NeededVersion:
    """A version whose files must be in the store."""

    id: int
    team: str
    model: str
    number: int
    aliases: tuple[str, ...]
    package_digest: str
    artifact_digest: str
    job_id: int | None
    is_flagged: bool
    """As damaged, by an earlier check."""

    @property
    def name(self) -> str:
        """As people write it."""
        return f"{self.model}:{self.number}"


@dataclass(frozen=True)
class NeededStep:
    """A step of a job that is not over, whose artifact later steps read."""

    job_id: int
    kind: str
    artifact_digest: str


@dataclass(frozen=True)
class Source:
    """What the source of a version said, for that is measured again against it."""

    artifact_digest: str
    version: str
    job_id: int
    """Whose step *reference* it is the artifact of."""


@dataclass(frozen=True)
class Repair:
    """A job that makes content again."""

    job_id: int
    is_new: bool
    note: str | None = None


@dataclass(frozen=True)
class NoRepair:
    """Why it cannot be made again."""

    why: str


def needed_versions(session: Session) -> list[NeededVersion]:
    """All versions that are not deleted for good, by model and number."""
    aliases: dict[int, list[str]] = {}
    for version_id, name in session.execute(select(AliasRow.version_id, AliasRow.name).order_by(AliasRow.name)):
        aliases.setdefault(version_id, []).append(name)
    query = (
        select(
            VersionRow.id,
            ModelRow.team,
            ModelRow.name,
            VersionRow.number,
            VersionRow.package_digest,
            VersionRow.artifact_digest,
            VersionRow.job_id,
            VersionRow.flags,
        )
        .join(ModelRow, ModelRow.id == VersionRow.model_id)
        .where(has_files())
        .order_by(ModelRow.team, ModelRow.name, VersionRow.number)
    )
    return [
        NeededVersion(
            id=row.id,
            team=row.team,
            model=row.name,
            number=row.number,
            aliases=tuple(aliases.get(row.id, ())),
            package_digest=row.package_digest,
            artifact_digest=row.artifact_digest,
            job_id=row.job_id,
            is_flagged=VersionFlag.DAMAGED.value in row.flags,
        )
        for row in session.execute(query)
    ]


def needed_steps(session: Session) -> list[NeededStep]:
    """The steps of jobs that are not over that have an artifact."""
    query = (
        select(StepRow.job_id, StepRow.kind, StepRow.artifact_digest)
        .join(JobRow, JobRow.id == StepRow.job_id)
        .where(JobRow.state.not_in(FINAL_JOB_STATES), StepRow.artifact_digest.is_not(None))
        .order_by(StepRow.id)
    )
    return [NeededStep(job_id, kind, digest or "") for job_id, kind, digest in session.execute(query)]


def remembered_artifacts(session: Session) -> set[str]:
    """Digests of the artifacts of remembered results."""
    query = select(RememberedRow.artifact_digest).where(RememberedRow.artifact_digest.is_not(None))
    return {digest for digest in session.scalars(query) if digest is not None}


def sources(session: Session) -> list[Source]:
    """What the sources of versions said, by version; one artifact may be that of many."""
    query = (
        select(StepRow.artifact_digest, ModelRow.name, VersionRow.number, JobRow.id)
        .join(JobRow, JobRow.id == StepRow.job_id)
        .join(VersionRow, VersionRow.id == JobRow.version_id)
        .join(ModelRow, ModelRow.id == VersionRow.model_id)
        .where(StepRow.kind == StepKind.REFERENCE, StepRow.artifact_digest.is_not(None), has_files())
        .order_by(ModelRow.team, ModelRow.name, VersionRow.number, JobRow.id)
    )
    return [Source(digest or "", f"{name}:{number}", job_id) for digest, name, number, job_id in session.execute(query)]


def provenance_and_report(session: Session, version_id: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was written down of a version when it was published."""
    row = session.get_one(VersionRow, version_id)
    return row.provenance, row.report


def note_damage(session: Session, version: NeededVersion, reason: str | None) -> None:
    """Flag a version as damaged, so that no alias is moved to it; None: it is whole, the flag goes."""
    if reason is not None:
        flag(session, version.id, VersionFlag.DAMAGED, reason)
    elif version.is_flagged:
        unflag(session, version.id, VersionFlag.DAMAGED)


def queue_repair(session: Session, version: NeededVersion) -> Repair | NoRepair:
    """Queue the steps that made a version's package once more; a repair that is under way is not queued twice."""
    if version.job_id is None:
        return NoRepair(f"it was not made here; import {version.name} again from where it came")
    job = session.get_one(JobRow, version.job_id)
    step = _maker(session, job, StepKind.PACKAGE, version.package_digest)
    if step is None:
        return NoRepair(f"job {job.id} no longer says which step made it")
    return _queue_once(session, job, step, f"repair of {version.name}")


def queue_source_repair(session: Session, source: Source) -> Repair | NoRepair:
    """Queue the step that asked a version's source once more, while its checkpoint is still there."""
    job = session.get_one(JobRow, source.job_id)
    step = _maker(session, job, StepKind.REFERENCE, source.artifact_digest)
    if step is None:
        return NoRepair(f"job {job.id} no longer says which step made it")
    return _queue_once(session, job, step, f"repair of the source of {source.version}")


def _queue_once(session: Session, job: JobRow, step: StepRow, name: str) -> Repair | NoRepair:
    """Queue the steps of a job up to this one as a batch of this name, unless one of this name is under way."""
    query = (
        select(JobRow.id)
        .join(BatchRow, BatchRow.id == JobRow.batch_id)
        .where(BatchRow.team == job.team, BatchRow.name == name, JobRow.state.not_in(FINAL_JOB_STATES))
    )
    if (under_way := session.scalar(query.limit(1))) is not None:
        return Repair(under_way, is_new=False)
    if (other := _other_bytes(session, name, step)) is not None:
        return NoRepair(f"job {other} made it again, with other bytes: what it is made from or with has changed")
    hindrance, note = _hindrance(session, job, step)
    if hindrance is not None:
        return NoRepair(hindrance)
    return Repair(_insert(session, job, step, name), True, note)


def _maker(session: Session, job: JobRow, kind: StepKind, digest: str) -> StepRow | None:
    """The step of a job that made this artifact."""
    query = select(StepRow).where(
        StepRow.job_id == job.id,
        StepRow.kind == kind,
        StepRow.state == StepState.SUCCEEDED,
        StepRow.artifact_digest == digest,
        or_(StepRow.rung == job.rung, StepRow.kind.in_(ONCE_A_JOB)),
    )
    return session.scalar(query)


def _other_bytes(session: Session, name: str, step: StepRow) -> int | None:
    """The last repair job of this name, if it succeeded and made something else."""
    query = (
        select(JobRow.id, StepRow.artifact_digest)
        .join(BatchRow, BatchRow.id == JobRow.batch_id)
        .join(StepRow, StepRow.job_id == JobRow.id)
        .where(BatchRow.team == step.team, BatchRow.name == name)
        .where(JobRow.state == JobState.SUCCEEDED, StepRow.kind == step.kind)
        .order_by(JobRow.id.desc())
    )
    last = session.execute(query.limit(1)).one_or_none()
    return last.id if last is not None and last.artifact_digest != step.artifact_digest else None


def _hindrance(session: Session, job: JobRow, step: StepRow) -> tuple[str | None, str | None]:
    """Why the steps would not give the same bytes; and what to know where they would."""
    facts, done = job_facts(session, job.id), done_steps(session, job.id)
    if key_of(StepKind(step.kind), facts, done, step.fingerprint or "") != step.key:
        return "it was made by a release of olivepress whose steps work otherwise", None
    short = (step.fingerprint or "")[:12]
    living = {row.fingerprint for row in pressing(session)}
    if living:
        gone = f"the toolchain that made it ({short}) is on no living worker; start one that has it, and check again"
        return (None if step.fingerprint in living else gone), None
    known = set(session.scalars(select(WorkerRow.fingerprint)))
    if known and step.fingerprint not in known:
        return f"the toolchain that made it ({short}) is on no worker that is known", None
    return None, "no worker lives; it runs when one starts"


def _insert(session: Session, job: JobRow, last: StepRow, name: str) -> int:
    """A batch with one job that has the steps up to this one; it publishes nothing."""
    now = seconds_now(session)
    batch = BatchRow(team=job.team, name=name, idempotency_key=None, created_at=now)
    session.add(batch)
    session.flush()
    asked = {column.key: getattr(job, column.key) for column in inspect(JobRow).column_attrs if column.key not in _OWN}
    again = JobRow(
        batch_id=batch.id,
        state=JobState.QUEUED.value,
        is_fresh=False,
        cancel_requested=False,
        created_at=now,
        **{key: value for key, value in asked.items() if value is not None},
    )
    session.add(again)
    session.flush()
    location = ingest_location(batch.id, job.checkpoint_path, job.base_path, job.chat_template, JobKind(job.kind))
    query = select(StepRow).where(
        StepRow.job_id == job.id,
        StepRow.kind.in_(ASKED_AGAIN if last.kind == StepKind.REFERENCE else MADE_AGAIN),
        StepRow.position <= last.position,
        or_(StepRow.rung == last.rung, StepRow.kind.in_(ONCE_A_JOB)),
    )
    kinds = [(StepKind(made.kind), made.rung) for made in session.scalars(query.order_by(StepRow.position))]
    session.add_all(steps_from_ingest(again, kinds, location, now))
    session.flush()
    return again.id
