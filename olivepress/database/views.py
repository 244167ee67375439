"""What people look at: read-only queries that give batches, jobs and workers as plain JSON values."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from olivepress.database import rungs
from olivepress.database.figures import FIGURES, figures_of, figures_view
from olivepress.database.sessions import seconds_now
from olivepress.database.tables import AttemptRow, BatchRow, JobRow, Json, LeaseRow, StepRow, VersionRow, WorkerRow
from olivepress.database.workers import ALIVE_FOR_S, SCHEDULER_LEASE, alive, pressing
from olivepress.errors import NotFound
from olivepress.jobs import FINAL_JOB_STATES, PUBLISHING_STEPS, JobState, StepKind, StepState, batch_state
from olivepress.placement import Need, why_nowhere


@dataclass(frozen=True)
class JobFilter:
    """Which jobs a list shows; None or empty means any."""

    team: str | None = None
    batch_id: int | None = None
    states: tuple[JobState, ...] = ()
    before_id: int | None = None
    """Only jobs that are older than this one: the next page."""


def batches(session: Session, team: str, limit: int, before_id: int | None = None) -> list[Json]:
    """The newest batches of a team, with their state and the number of jobs in each state."""
    query = select(BatchRow).where(BatchRow.team == team).order_by(BatchRow.id.desc()).limit(limit)
    if before_id is not None:
        query = query.where(BatchRow.id < before_id)
    rows = session.scalars(query).all()
    counts = _job_counts(session, JobRow.batch_id.in_([row.id for row in rows]))
    has_workers = bool(pressing(session))
    return [_batch_view(row, counts.get(row.id, {}), has_workers) for row in rows]


def batch_summary(session: Session, batch_id: int) -> Json:
    """A batch with its state and the number of jobs in each state.

    Raises:
        NotFound: there is no such batch.
    """
    row = session.get(BatchRow, batch_id)
    if row is None:
        raise NotFound(f"there is no batch {batch_id}; `olivepress jobs` lists the jobs and batches that exist")
    counts = _job_counts(session, JobRow.batch_id == batch_id).get(batch_id, {})
    return _batch_view(row, counts, bool(pressing(session)))


def batch(session: Session, batch_id: int, states: Collection[JobState] = ()) -> Json:
    """A batch with its jobs and their steps.

    Args:
        states: show only jobs in these states (a large batch's running ones, say); state and counts cover all.

    Raises:
        NotFound: there is no such batch.
    """
    chosen = _chosen(JobFilter(batch_id=batch_id, states=tuple(states))).order_by(JobRow.id)
    return batch_summary(session, batch_id) | {"jobs": _job_views(session, chosen)}


def jobs(session: Session, wanted: JobFilter, limit: int) -> list[Json]:
    """The newest jobs that the filter lets through, with their steps."""
    return _job_views(session, _chosen(wanted).order_by(JobRow.id.desc()).limit(limit))


def job(session: Session, job_id: int) -> Json:
    """A job with everything that is known of it: steps, attempts, checkpoint facts and the validation's report.

    Raises:
        NotFound: there is no such job.
    """
    found = _job_views(session, select(JobRow.id).where(JobRow.id == job_id))
    if not found:
        raise NotFound(f"there is no job {job_id}; `olivepress jobs` lists those that exist")
    rows = session.scalars(select(StepRow).where(StepRow.job_id == job_id).order_by(StepRow.position)).all()
    attempts: dict[int, list[Json]] = {}
    for attempt in session.scalars(_attempts_of(job_id)):
        attempts.setdefault(attempt.step_id, []).append(_attempt_view(attempt))
    steps = [
        summary
        | {
            "worker_id": row.worker_id,
            "artifact_digest": row.artifact_digest,
            "error_class": row.error_class,
            "error_message": row.error_message,
            "notes": (row.result or {}).get("notes") or [],
            "attempts": attempts.get(row.id, []),
        }
        for summary, row in zip(found[0]["steps"], rows, strict=True)
    ]
    # Of a ladder the rung that it is on comes last.
    results = {row.kind: row.result or {} for row in rows if row.result is not None}
    ingested, validated = results.get(StepKind.INGEST, {}), results.get(StepKind.VALIDATE, {})
    report = validated.get("report")
    return found[0] | {
        "recipe_settings": session.scalars(select(JobRow.recipe).where(JobRow.id == job_id)).one(),
        "steps": steps,
        "ingested": {key: value for key, value in ingested.items() if key != "files"} or None,
        "report": report | rungs.report_part(session, job_id) if report else None,
        "seal": results.get(StepKind.SEAL, {}).get("seal"),
    }


def job_log(session: Session, job_id: int, kind: StepKind | None = None) -> Json:
    """The ends of the logs of a job's attempts, oldest first; of one kind of step if given.

    Raises:
        NotFound: there is no such job.
    """
    if session.scalar(select(JobRow.id).where(JobRow.id == job_id)) is None:
        raise NotFound(f"there is no job {job_id}; `olivepress jobs` lists those that exist")
    query = _attempts_of(job_id).add_columns(StepRow.kind)
    if kind is not None:
        query = query.where(StepRow.kind == kind)
    logs = [
        {
            "step": step,
            "attempt": row.number,
            "outcome": row.outcome,
            "worker_id": row.worker_id,
            "started_at": row.started_at,
            "log": row.log_tail or "",
            "log_lines": row.log_lines,
        }
        for row, step in session.execute(query)
    ]
    return {"job_id": job_id, "logs": logs}


def workers(session: Session) -> list[Json]:
    """Workers that live, and those that stopped or were lost within the last day; the living first."""
    now = seconds_now(session)
    running = (
        select(StepRow.worker_id, func.count().label("steps"))
        .where(StepRow.state == StepState.RUNNING)
        .group_by(StepRow.worker_id)
        .subquery()
    )
    query = (
        select(WorkerRow, running.c.steps)
        .outerjoin(running, running.c.worker_id == WorkerRow.id)
        .where(WorkerRow.seen_at > now - 24 * 3600)
        .order_by(WorkerRow.started_at.desc())
    )
    found = [_worker_view(row, steps or 0, now) for row, steps in session.execute(query)]
    return sorted(found, key=lambda worker: not worker["alive"])


def scheduler_lease(session: Session) -> Json:
    """Who leads the scheduling, and whether that lease still runs."""
    row = session.get(LeaseRow, SCHEDULER_LEASE)
    now = seconds_now(session)
    if row is None:
        return {"alive": False, "holder": None, "expires_at": None}
    return {"alive": row.expires_at > now, "holder": row.holder, "expires_at": row.expires_at}


def _chosen(wanted: JobFilter) -> Select[int]:
    query = select(JobRow.id)
    if wanted.team is not None:
        query = query.where(JobRow.team == wanted.team)
    if wanted.batch_id is not None:
        query = query.where(JobRow.batch_id == wanted.batch_id)
    if wanted.states:
        query = query.where(JobRow.state.in_(wanted.states))
    if wanted.before_id is not None:
        query = query.where(JobRow.id < wanted.before_id)
    return query


def _job_counts(session: Session, condition: ColumnElement[bool]) -> dict[int, dict[JobState, int]]:
    query = select(JobRow.batch_id, JobRow.state, func.count()).where(condition).group_by(JobRow.batch_id, JobRow.state)
    counts: dict[int, dict[JobState, int]] = {}
    for batch_id, state, count in session.execute(query):
        counts.setdefault(batch_id, {})[JobState(state)] = count
    return counts


def _batch_view(row: BatchRow, counts: dict[JobState, int], has_workers: bool) -> Json:
    state = batch_state(counts)
    is_stuck = not has_workers and state not in FINAL_JOB_STATES
    return {
        "id": row.id,
        "team": row.team,
        "name": row.name,
        "state": state.value,
        "waits_for": why_nowhere(Need(), ()) if is_stuck else None,
        "created_at": row.created_at,
        "counts": {state.value: counts.get(state, 0) for state in JobState},
    }


def _job_views(session: Session, chosen: Select[int]) -> list[Json]:
    """Jobs with steps and figures, in the order of `chosen`: three queries however many they are."""
    ids = chosen.subquery()
    now = seconds_now(session)
    rows = session.execute(_job_columns().where(JobRow.id.in_(select(ids.c.id)))).all()
    steps: dict[int, list[Json]] = {}
    living, nobody = alive(session), why_nowhere(Need(), ())
    nowhere_to_publish = None if living else nobody
    nowhere = None if any(worker.memory_bytes for worker in living) else nobody
    for row in session.execute(_step_columns().where(StepRow.job_id.in_(select(ids.c.id)))):
        reason = nowhere_to_publish if row.kind in PUBLISHING_STEPS else nowhere
        steps.setdefault(row.job_id, []).append(_step_view(row, now, reason))
    figures = _job_figures(session, StepRow.job_id.in_(select(ids.c.id)))
    views = {row.id: _job_view(row, steps.get(row.id, []), now) | {"figures": figures.get(row.id)} for row in rows}
    # A job that was added between the queries is left to the next look.
    return [views[job_id] for job_id in session.scalars(chosen) if job_id in views]


def _job_columns() -> Select[*tuple[Any, ...]]:
    # Not the whole row: the recipe's JSON is not shown in lists.
    subject = aliased(VersionRow)
    found: Select[*tuple[Any, ...]] = select(
        JobRow.id,
        JobRow.batch_id,
        JobRow.kind,
        JobRow.rung,
        JobRow.ladder,
        JobRow.team,
        JobRow.checkpoint_name,
        JobRow.checkpoint_path,
        JobRow.base_path,
        JobRow.recipe_name,
        JobRow.model_name,
        JobRow.alias,
        JobRow.priority,
        JobRow.state,
        JobRow.cancel_requested,
        JobRow.error_class,
        JobRow.error_message,
        JobRow.created_at,
        JobRow.finished_at,
        VersionRow.number.label("version_number"),
        subject.number.label("subject_number"),
    )
    found = found.outerjoin(VersionRow, VersionRow.id == JobRow.version_id)
    return found.outerjoin(subject, subject.id == JobRow.subject_version_id)


def _step_columns() -> Select[*tuple[Any, ...]]:
    source, source_job = aliased(StepRow), aliased(JobRow)
    return (
        select(
            StepRow.job_id,
            StepRow.kind,
            StepRow.rung,
            StepRow.state,
            StepRow.phase,
            StepRow.share,
            StepRow.attempts,
            StepRow.started_at,
            StepRow.finished_at,
            StepRow.reused_step_id,
            StepRow.unplaceable,
            StepRow.memory_bytes,
            StepRow.predicted_s,
            # What another team has submitted is not this team's business; that it was reused is.
            case((source_job.team == JobRow.team, source_job.id)).label("reused_job"),
        )
        .join(JobRow, JobRow.id == StepRow.job_id)
        .outerjoin(source, source.id == StepRow.reused_step_id)
        .outerjoin(source_job, source_job.id == source.job_id)
        .order_by(StepRow.job_id, StepRow.position)
    )


def _job_figures(session: Session, condition: ColumnElement[bool]) -> dict[int, Json]:
    """What was measured of each job's artifact; before that, the size that ingest found."""
    result: InstrumentedAttribute[Json | None] = StepRow.result
    ingested = select(StepRow.job_id, result["size_bytes"].as_float().label("size_bytes")).where(
        StepRow.kind == StepKind.INGEST, StepRow.state == StepState.SUCCEEDED, condition
    )
    empty: Json = dict.fromkeys(FIGURES) | {"certificate": None}
    figures = {
        row.job_id: empty | {"source_size_bytes": int(row.size_bytes)}
        for row in session.execute(ingested)
        if row.size_bytes is not None
    }
    measured = select(StepRow.job_id, *figures_of(result, ("report",))).where(
        StepRow.kind == StepKind.VALIDATE, StepRow.state == StepState.SUCCEEDED, condition
    )
    # Of a ladder the last rung's replace those of the rungs before.
    measured = measured.order_by(StepRow.job_id, StepRow.rung)
    return figures | {row.job_id: figures_view(row) for row in session.execute(measured)}


def _job_view(row: Any, steps: list[Json], now: float) -> Json:
    started_at = _earliest(step["started_at"] for step in steps)
    return {
        "id": row.id,
        "batch_id": row.batch_id,
        "kind": row.kind,
        "team": row.team,
        "name": row.checkpoint_name,
        "path": row.checkpoint_path,
        "base": row.base_path,
        "recipe": row.recipe_name,
        "rung": row.rung,
        "ladder": [rung["recipe"]["name"] for rung in row.ladder or ()],
        "model": row.model_name,
        "version": f"{row.model_name}:{row.version_number}" if row.version_number is not None else None,
        "subject": f"{row.model_name}:{row.subject_number}" if row.subject_number is not None else None,
        "alias": row.alias,
        "priority": row.priority,
        "state": row.state,
        "cancel_requested": row.cancel_requested,
        "error_class": row.error_class,
        "error_message": row.error_message,
        "created_at": row.created_at,
        "started_at": started_at,
        "finished_at": row.finished_at,
        "seconds": _seconds(started_at, row.finished_at, now),
        "steps": steps,
    }


def _step_view(row: Any, now: float, nowhere: str | None) -> Json:
    return {
        "kind": row.kind,
        "rung": row.rung,
        "state": row.state,
        "phase": row.phase,
        "share": row.share,
        "attempt": row.attempts,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "seconds": _seconds(row.started_at, row.finished_at, now),
        "reused": row.reused_step_id is not None,
        "reused_job": row.reused_job,
        "waits_for": (nowhere or row.unplaceable) if row.state == StepState.QUEUED else None,
        "predicted_memory_bytes": row.memory_bytes or None,
        "predicted_s": row.predicted_s,
    }


def _attempts_of(job_id: int) -> Select[AttemptRow]:
    return (
        select(AttemptRow)
        .join(StepRow, StepRow.id == AttemptRow.step_id)
        .where(StepRow.job_id == job_id)
        .order_by(StepRow.position, AttemptRow.fence)
    )


def _attempt_view(row: AttemptRow) -> Json:
    return {
        "number": row.number,
        "worker_id": row.worker_id,
        "outcome": row.outcome,
        "exit_code": row.exit_code,
        "signal": row.signal,
        "error_class": row.error_class,
        "error_message": row.error_message,
        "cpu_s": row.cpu_s,
        "peak_rss_bytes": row.peak_rss_bytes,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
    }


def _worker_view(row: WorkerRow, running_steps: int, now: float) -> Json:
    return {
        "id": row.id,
        "alive": row.stopped_at is None and row.seen_at > now - ALIVE_FOR_S,
        "host": row.host,
        "pools": row.pools,
        "slots": row.slots,
        "running_steps": running_steps,
        "memory_bytes": row.memory_bytes,
        "allowance_bytes": row.allowance_bytes,
        "disk_free_bytes": row.disk_free_bytes,
        "fingerprint": row.fingerprint,
        "hardware": row.hardware,
        "toolchain": row.toolchain,
        "architectures": row.architectures,
        "signing_key": row.signing_key,
        "started_at": row.started_at,
        "seen_at": row.seen_at,
        "stopped_at": row.stopped_at,
    }


def _earliest(times: Iterable[float | None]) -> float | None:
    return min((time for time in times if time is not None), default=None)


def _seconds(started_at: float | None, finished_at: float | None, now: float) -> float | None:
    if started_at is None:
        return None
    return round(max(0.0, (finished_at if finished_at is not None else now) - started_at), 3)
