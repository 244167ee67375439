"""Imports: models that were made elsewhere."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Response

from api.routes import Stack
from api.schemas import SubmittedBatch
from olivepress import importing
from olivepress.database import views
from olivepress.job_orders import ImportOrder

router = APIRouter(prefix="/imports", tags=["models"])


@router.post("", status_code=HTTPStatus.ACCEPTED, summary="Import a model that was made elsewhere")
def submit(
    order: ImportOrder,
    response: Response,
    stack: Stack,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=200, description="The same key again gives the batch that it gave first."),
    ] = None,
) -> SubmittedBatch:
    """A job that checks an ONNX model directory, or an exported version, measures it and publishes it.

    The path is the worker's, under an allowed root, as those of checkpoints are.
    """
    accepted = importing.submit_import(stack.database, order, idempotency_key)
    if accepted.is_new:
        stack.ring()
    response.headers["Location"] = f"/v1/batches/{accepted.batch_id}"
    with stack.database.read() as session:
        state = views.batch_summary(session, accepted.batch_id)["state"]
    return SubmittedBatch(id=accepted.batch_id, jobs=list(accepted.job_ids), state=state)
