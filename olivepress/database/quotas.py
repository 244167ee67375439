"""Quotas of teams: what they may have, what they have, and the checks that no two transactions pass together."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from olivepress.database.sessions import DatabaseNow
from olivepress.database.tables import JobRow, Json, ModelRow, QuotaRow, VersionRow
from olivepress.database.upsert import upsert
from olivepress.jobs import JobKind, JobState
from olivepress.quotas import Quota, Usage, Wanted, check_publication, check_submission

OPEN_JOBS = (JobState.QUEUED, JobState.RUNNING)
# They publish nothing.
MEASURING = [kind for kind in JobKind if kind.measures_again]


def quota_of(session: Session, team: str) -> Quota:
    """A team's limits; none where nobody set any."""
    row = session.get(QuotaRow, team)
    return _quota(row) if row else Quota()


def set_quota(session: Session, team: str, quota: Quota) -> None:
    """Give a team these limits. What it has beyond them stays; it just gets no more."""
    values: dict[str, Any] = {**vars(quota), "updated_at": DatabaseNow()}
    change = upsert(session, QuotaRow).values(team=team, **values)
    session.execute(change.on_conflict_do_update(index_elements=["team"], set_=values))


def usage_of(session: Session, team: str) -> Usage:
    """What a team has."""
    published = (
        select(func.count(), func.coalesce(func.sum(VersionRow.size_bytes), 0))
        .join(ModelRow, ModelRow.id == VersionRow.model_id)
        .where(ModelRow.team == team, VersionRow.deleted_at.is_(None))
    )
    versions, size_bytes = session.execute(published).one()
    waiting = select(func.count(), func.coalesce(func.sum(JobRow.predicted_bytes), 0)).where(
        JobRow.team == team, JobRow.state.in_(OPEN_JOBS), JobRow.kind.not_in(MEASURING)
    )
    jobs, waiting_bytes = session.execute(waiting).one()
    return Usage(versions, int(size_bytes or 0), jobs, int(waiting_bytes or 0))


def quota_view(session: Session, team: str) -> Json:
    """A team's limits and what it has, as plain JSON values."""
    quota, usage = quota_of(session, team), usage_of(session, team)
    return {"team": team, **vars(quota), "used": vars(usage)}


def quota_views(session: Session) -> list[Json]:
    """The same of every team that has a quota, by name."""
    return [quota_view(session, team) for team in session.scalars(select(QuotaRow.team).order_by(QuotaRow.team))]


def check_quota(session: Session, team: str, wanted: Wanted) -> None:
    """Refuse a submission that passes its team's quota; to be called in the transaction that writes its jobs.

    Of two submissions of one team the second waits for the first, so that they do not pass together.

    Raises:
        QuotaExceeded: it does; see `olivepress.quotas.check_submission`.
    """
    quota = _locked(session, team)
    if not quota.is_unlimited:
        check_submission(team, quota, usage_of(session, team), wanted)


def check_version(session: Session, team: str, size_bytes: int) -> None:
    """Refuse a version that passes its team's quota; to be called in the transaction that writes it, before.

    Also for a deleted version that comes back. Of two of one team the second waits for the first.

    Raises:
        QuotaExceeded: it does; see `olivepress.quotas.check_publication`.
    """
    quota = _locked(session, team)
    if not quota.is_unlimited:
        check_publication(team, quota, usage_of(session, team), size_bytes)


def note_predictions(session: Session, job_ids: Sequence[int], sizes: Sequence[int]) -> None:
    """Keep what new jobs are predicted to publish, in bytes; it counts as long as they are not over."""
    rows = [{"id": job_id, "predicted_bytes": size} for job_id, size in zip(job_ids, sizes, strict=True) if size]
    if rows:
        session.execute(update(JobRow), rows)


def limits_bytes(session: Session, team: str) -> bool:
    """Whether it matters how much a team's jobs will publish."""
    return quota_of(session, team).max_bytes is not None


def _locked(session: Session, team: str) -> Quota:
    # SQLite has one writer at a time anyway, and leaves FOR UPDATE out.
    row = session.scalar(
        select(QuotaRow).where(QuotaRow.team == team).with_for_update().execution_options(populate_existing=True)
    )
    return _quota(row) if row else Quota()


def _quota(row: QuotaRow) -> Quota:
    return Quota(row.max_bytes, row.max_versions, row.max_jobs)
