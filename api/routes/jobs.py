"""Jobs: list, look at, read the logs, cancel."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from api.followed_log import followed_log
from api.routes import DEFAULT_TEAM, MAX_ID, BeforeId, Stack, Team
from api.schemas import Job, JobDetail, JobLog
from olivepress.database import cancelling, views
from olivepress.database.attempt_logs import LogFollower
from olivepress.database.tables import Json
from olivepress.jobs import JobState, StepKind

router = APIRouter(prefix="/jobs", tags=["jobs"])
JobNumber = Annotated[int, Path(ge=1, le=MAX_ID)]


@router.get("", response_model=list[Job], summary="List jobs, newest first")
def jobs(
    stack: Stack,
    team: Team = DEFAULT_TEAM,
    state: Annotated[list[JobState] | None, Query(description="Only jobs in these states.")] = None,
    batch: Annotated[int | None, Query(ge=1, le=MAX_ID, description="Only jobs of this batch.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    before: BeforeId = None,
) -> list[Json]:
    """Jobs of a team with their steps; `before` with the last id of a page gives the next page."""
    wanted = views.JobFilter(team=team, batch_id=batch, states=tuple(state or ()), before_id=before)
    with stack.database.read() as session:
        return views.jobs(session, wanted, limit)


@router.get("/{job_id}", response_model=JobDetail, summary="Look at a job, its steps and their attempts")
def job(stack: Stack, job_id: JobNumber) -> Json:
    """Everything that is known of a job: attempts with their endings, what was reused, the validation's report."""
    with stack.database.read() as session:
        return views.job(session, job_id)


@router.get(
    "/{job_id}/log",
    response_model=JobLog,
    summary="Read the ends of a job's logs, or follow them",
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
def log(
    stack: Stack,
    job_id: JobNumber,
    step: Annotated[StepKind | None, Query(description="Only attempts of this step.")] = None,
    follow: Annotated[bool, Query(description="Stream what is printed, as server-sent events.")] = False,
) -> Any:
    """The last part of the log of each attempt, oldest first, also of one that runs.

    With `follow`, an endless answer of type text/event-stream. Its events, each with a JSON object: `attempt` (one
    began), `lines` (`lines`, from number `first_line` on; `skipped` were lost between two looks), `ended` (an
    attempt, with its `outcome`), and at last `over` (the job, or the step if one is given). Without news for a while
    comes a comment.
    """
    if follow:
        return followed_log(stack.database, LogFollower(job_id, step))
    with stack.database.read() as session:
        return views.job_log(session, job_id, step)


@router.post("/{job_id}/cancel", status_code=HTTPStatus.ACCEPTED, response_model=JobDetail, summary="Cancel a job")
def cancel(stack: Stack, job_id: JobNumber) -> Json:
    """Cancel a job: waiting steps at once, a running one within seconds by its worker. A finished job stays so."""
    with stack.database.write() as session:
        views.job(session, job_id)
        cancelling.cancel_job(session, job_id)
    with stack.database.read() as session:
        return views.job(session, job_id)
