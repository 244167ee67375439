"""People end jobs: what waits is cancelled at once, what runs by its worker, which polls for it."""

from sqlalchemy import ColumnElement, exists, select, update
from sqlalchemy.orm import Session

from olivepress.database.sessions import DatabaseNow
from olivepress.database.tables import JobRow, StepRow
from olivepress.database.unblocking import count_of, lock_waiting
from olivepress.jobs import FINAL_JOB_STATES, JobState, StepState

# Rows that the session has loaded are not looked through for each statement; it forgets them at the end.
UNSEEN = {"synchronize_session": False}


def cancel_job(session: Session, job_id: int) -> None:
    """Ask for the end of a job; one that is over stays as it is."""
    _cancel(session, JobRow.id == job_id)


def cancel_batch(session: Session, batch_id: int) -> None:
    """Ask for the end of all jobs of a batch that are not over."""
    _cancel(session, JobRow.batch_id == batch_id)


def cancelled_steps(session: Session, worker_id: str) -> set[int]:
    """Steps that this worker runs and whose job somebody asked to cancel."""
    query = (
        select(StepRow.id)
        .join(JobRow, JobRow.id == StepRow.job_id)
        .where(StepRow.worker_id == worker_id, StepRow.state == StepState.RUNNING, JobRow.cancel_requested)
    )
    return set(session.scalars(query))


def _cancel(session: Session, chosen: ColumnElement[bool]) -> None:
    now = DatabaseNow()
    is_open = chosen & JobRow.state.not_in(FINAL_JOB_STATES)
    lock_waiting(session, select(JobRow.id).where(is_open))
    session.scalar(count_of(select(JobRow.id).where(is_open).order_by(JobRow.id).with_for_update()))
    session.execute(update(JobRow).where(is_open).values(cancel_requested=True), execution_options=UNSEEN)
    session.execute(
        update(StepRow)
        .where(
            StepRow.job_id.in_(select(JobRow.id).where(is_open)),
            StepRow.state.in_([StepState.BLOCKED, StepState.QUEUED]),
        )
        .values(state=StepState.CANCELLED, finished_at=now),
        execution_options=UNSEEN,
    )
    # What jobs.job_state says of jobs of which nothing runs and nothing failed; failed ones are over already.
    runs = exists().where(StepRow.job_id == JobRow.id, StepRow.state == StepState.RUNNING)
    session.execute(
        update(JobRow).where(is_open, ~runs).values(state=JobState.CANCELLED, finished_at=now),
        execution_options=UNSEEN,
    )
    session.expire_all()
