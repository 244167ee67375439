"""What past attempts took, as the predictions of `olivepress inspect` and of the placement use it."""

from fastapi import APIRouter

from api.routes import Stack
from api.schemas import LearnedCost
from olivepress.database import costs

router = APIRouter(tags=["health"])


@router.get("/costs", summary="List what was learned of the steps' costs")
def list_costs(stack: Stack) -> list[LearnedCost]:
    """Ratios to what is predicted from sizes alone, by step kind and family."""
    with stack.database.read() as session:
        learned = costs.learned(session)
    return [
        LearnedCost(
            kind=kind, family=family, memory_ratio=ratio.memory, seconds_ratio=ratio.seconds, attempts=ratio.attempts
        )
        for (kind, family), ratio in sorted(learned.items())
    ]
