"""Rows of steps that nobody has moved yet."""

from collections.abc import Iterable

from olivepress.database.tables import JobRow, StepRow
from olivepress.jobs import PUBLISHING_STEPS, StepKind, StepState, rank
from olivepress.step_cost import INGEST_BYTES


def blocked_step(job: JobRow, kind: StepKind, position: int, now: float, *, rung: int = 0) -> StepRow:
    """A step that waits for those before it."""
    return StepRow(
        job_id=job.id,
        kind=kind.value,
        position=position,
        rung=rung,
        state=StepState.BLOCKED.value,
        team=job.team,
        pool=None if kind in PUBLISHING_STEPS else job.pool,
        rank=rank(job.priority, position),
        memory_bytes=0,
        scratch_bytes=0,
        run_at=now,
        fence=0,
        attempts=0,
    )


def steps_from_ingest(job: JobRow, kinds: Iterable[tuple[StepKind, int]], location: str, now: float) -> list[StepRow]:
    """The steps of a job of its own: its ingest is queued, the others wait.

    Args:
        kinds: each with its rung, ingest first.
        location: the key of the ingest (`steps.ingest_location`).
    """
    rows = [blocked_step(job, kind, place, now, rung=rung) for place, (kind, rung) in enumerate(kinds)]
    rows[0].state, rows[0].key, rows[0].memory_bytes = StepState.QUEUED.value, location, INGEST_BYTES
    return rows
