"""What an attempt prints and uses, noted in its row while it runs, and read from there by those who follow it."""

from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from olivepress.database.steps import Claim
from olivepress.database.tables import AttemptRow, JobRow, Json, StepRow
from olivepress.errors import NotFound
from olivepress.jobs import FINAL_JOB_STATES, FINAL_STEP_STATES, AttemptOutcome, StepKind


@dataclass(frozen=True)
class Noted:
    """What is known of a running attempt: the end of its log, the number of lines so far, what it used so far."""

    log_tail: str = ""
    log_lines: int = 0
    peak_rss_bytes: int | None = None
    cpu_s: float | None = None


def note(session: Session, held: Claim, noted: Noted) -> None:
    """Write it into the attempt's row, unless that has its ending already."""
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.step_id == held.step_id, AttemptRow.fence == held.fence, AttemptRow.outcome.is_(None))
        .values(
            log_tail=noted.log_tail,
            log_lines=noted.log_lines,
            peak_rss_bytes=noted.peak_rss_bytes,
            cpu_s=noted.cpu_s,
        )
    )


def outcome_of(session: Session, held: Claim) -> AttemptOutcome | None:
    """How this very attempt ended, as its row says; None while it runs."""
    query = select(AttemptRow.outcome).where(AttemptRow.step_id == held.step_id, AttemptRow.fence == held.fence)
    outcome = session.scalar(query)
    return AttemptOutcome(outcome) if outcome else None


@dataclass
class _Seen:
    lines: int = 0
    has_ended: bool = False


class LogFollower:
    """What is new in the logs of a job each time one looks, as a list of events.

    {"event": "attempt", "step", "attempt", "worker_id", "started_at"}: an attempt began.
    {"event": "lines", "step", "attempt", "first_line", "skipped", "lines"}: what it printed since. The row holds only
    the last lines; `skipped` counts those that were pushed out between two looks. `first_line` counts from 1.
    {"event": "ended", "step", "attempt", "outcome", "error_message"}: an attempt is over.
    {"event": "over", "state"}: so is the job (or the step, if one was asked for): the last event.
    """

    def __init__(self, job_id: int, kind: StepKind | None = None) -> None:
        self._job_id = job_id
        self._kind = kind
        self._seen: dict[int, _Seen] = {}
        self.is_over = False

    def look(self, session: Session) -> list[Json]:
        """The events since the last look.

        Raises:
            NotFound: there is no such job.
        """
        # First the state: attempts that are read afterwards are then at least as old.
        state, is_over = self._state(session)
        columns = (AttemptRow.id, AttemptRow.log_lines, AttemptRow.outcome)
        query = select(*columns).join(StepRow, StepRow.id == AttemptRow.step_id).where(StepRow.job_id == self._job_id)
        if self._kind is not None:
            query = query.where(StepRow.kind == self._kind)
        events: list[Json] = []
        for attempt_id, log_lines, outcome in session.execute(query.order_by(StepRow.position, AttemptRow.fence)):
            seen = self._seen.get(attempt_id)
            if seen is None or log_lines > seen.lines or (outcome is not None and not seen.has_ended):
                events += self._news(session, attempt_id)
        if is_over:
            self.is_over = True
            events.append({"event": "over", "state": state})
        return events

    def _state(self, session: Session) -> tuple[str, bool]:
        job_state = session.scalar(select(JobRow.state).where(JobRow.id == self._job_id))
        if job_state is None:
            raise NotFound(f"there is no job {self._job_id}; `olivepress jobs` lists those that exist")
        if self._kind is None:
            return job_state, job_state in FINAL_JOB_STATES
        query = select(StepRow.state).where(StepRow.job_id == self._job_id, StepRow.kind == self._kind)
        state = session.scalars(query).one()
        return state, state in FINAL_STEP_STATES

    def _news(self, session: Session, attempt_id: int) -> list[Json]:
        query = select(AttemptRow, StepRow.kind).join(StepRow, StepRow.id == AttemptRow.step_id)
        row, kind = session.execute(query.where(AttemptRow.id == attempt_id)).one()
        who: Json = {"step": kind, "attempt": row.number}
        events: list[Json] = []
        if attempt_id not in self._seen:
            events.append({"event": "attempt", **who, "worker_id": row.worker_id, "started_at": row.started_at})
        seen = self._seen.setdefault(attempt_id, _Seen())
        tail = row.log_tail.split("\n") if row.log_tail else [""] * min(1, row.log_lines)
        # Attempts of earlier releases have a log, and no count.
        written = row.log_lines or len(tail)
        if written > seen.lines:
            lines = tail[-(written - seen.lines) :]
            first = written - len(lines) + 1
            skipped = first - 1 - seen.lines
            events.append({"event": "lines", **who, "first_line": first, "skipped": skipped, "lines": lines})
            seen.lines = written
        if row.outcome is not None and not seen.has_ended:
            seen.has_ended = True
            events.append({"event": "ended", **who, "outcome": row.outcome, "error_message": row.error_message})
        return events
