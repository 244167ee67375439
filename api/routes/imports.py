"""Imports: models that were made elsewhere."""

from http import HTTPStatus

from fastapi import APIRouter, Response

from api.routes import Stack
from api.routes.accepting import IdempotencyKey, answer_accepted
from api.schemas import SubmittedBatch
from olivepress import importing
from olivepress.job_orders import ImportOrder

router = APIRouter(prefix="/imports", tags=["models"])


@router.post("", status_code=HTTPStatus.ACCEPTED, summary="Import a model that was made elsewhere")
def submit(
    order: ImportOrder,
    response: Response,
    stack: Stack,
    idempotency_key: IdempotencyKey = None,
) -> SubmittedBatch:
    """A job that checks an ONNX model directory, or an exported version, measures it and publishes it.

    The path is the worker's, under an allowed root, as those of checkpoints are.
    """
    accepted = importing.submit_import(stack.database, order, idempotency_key)
    return answer_accepted(stack, accepted, response)
