"""Retention: what is too old to keep."""

from fastapi import APIRouter

from api.routes import Stack
from api.schemas import Retention
from olivepress import retention
from olivepress.database.tables import Json
from olivepress.retention import Periods

router = APIRouter(prefix="/retention", tags=["retention"])


@router.get("", response_model=Retention, summary="Look what is too old to keep")
def plan(stack: Stack) -> Json:
    """What a run would remove now, by kind; removes nothing."""
    return retention.plan(stack.database, stack.store, Periods.of(stack.settings)).to_dict()


@router.post("", response_model=Retention, summary="Remove what is too old to keep")
def run(stack: Stack) -> Json:
    """Runs now what the scheduler runs every hour, and answers when it is done; 503 while another run is under way."""
    return retention.run(stack.database, stack.store, Periods.of(stack.settings)).to_dict()
