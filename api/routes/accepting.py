"""What the routes that accept work have in common: the idempotency key and the answer."""

from typing import Annotated

from fastapi import Header, Response

from api.routes import Parts
from api.schemas import SubmittedBatch
from olivepress.database import views
from olivepress.submission import Submitted

IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=200, description="The same key again gives the batch that it gave first."),
]


def answer_accepted(stack: Parts, accepted: Submitted, response: Response) -> SubmittedBatch:
    """Wake the scheduler for a new batch, and say where the batch is and how it stands."""
    if accepted.is_new:
        stack.ring()
    response.headers["Location"] = f"/v1/batches/{accepted.batch_id}"
    with stack.database.read() as session:
        state = views.batch_summary(session, accepted.batch_id)["state"]
    return SubmittedBatch(id=accepted.batch_id, jobs=list(accepted.job_ids), state=state)
