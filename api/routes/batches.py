"""Batches: submit, list, look at, cancel."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from api.routes import DEFAULT_TEAM, MAX_ID, BeforeId, Stack, Team
from api.routes.accepting import IdempotencyKey, answer_accepted
from api.schemas import Batch, BatchSummary, SubmittedBatch
from olivepress import submission
from olivepress.database import cancelling, views
from olivepress.database.tables import Json
from olivepress.jobs import JobState
from olivepress.manifest import Manifest

router = APIRouter(prefix="/batches", tags=["batches"])
BatchNumber = Annotated[int, Path(ge=1, le=MAX_ID)]


@router.post("", status_code=HTTPStatus.ACCEPTED, summary="Submit a batch")
def submit(
    manifest: Manifest,
    response: Response,
    stack: Stack,
    idempotency_key: IdempotencyKey = None,
) -> SubmittedBatch:
    """Accept every checkpoint with every recipe as one job each. The checkpoints are read later, by a worker."""
    accepted = submission.submit(stack.database, manifest, stack.settings.roots, idempotency_key)
    return answer_accepted(stack, accepted, response)


@router.get("", response_model=list[BatchSummary], summary="List batches, newest first")
def batches(
    stack: Stack,
    team: Team = DEFAULT_TEAM,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    before: BeforeId = None,
) -> list[Json]:
    """Batches of a team with their state and the number of jobs in each state."""
    with stack.database.read() as session:
        return views.batches(session, team, limit, before)


@router.get("/{batch_id}", response_model=Batch, summary="Look at a batch, its jobs and their steps")
def batch(
    stack: Stack,
    batch_id: BatchNumber,
    state: Annotated[list[JobState] | None, Query(description="Show only jobs in these states.")] = None,
) -> Json:
    """The batch's own state and counts always cover all of its jobs."""
    with stack.database.read() as session:
        return views.batch(session, batch_id, state or ())


@router.post(
    "/{batch_id}/cancel", status_code=HTTPStatus.ACCEPTED, response_model=BatchSummary, summary="Cancel a batch"
)
def cancel(stack: Stack, batch_id: BatchNumber) -> Json:
    """Cancel the jobs that are not over yet: waiting steps at once, running ones within seconds by their worker."""
    with stack.database.write() as session:
        views.batch_summary(session, batch_id)
        cancelling.cancel_batch(session, batch_id)
    with stack.database.read() as session:
        return views.batch_summary(session, batch_id)
