"""What teams may have, and what they have."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Path

from api.routes import Stack
from api.schemas import Quota, QuotaChange
from olivepress.database import quotas as kept
from olivepress.database.tables import Json

router = APIRouter(prefix="/quotas", tags=["quotas"])
TeamName = Annotated[str, Path(pattern="^[a-z0-9][a-z0-9_-]{0,62}$", examples=["research"])]


@router.get("", response_model=list[Quota], summary="List the teams that have a quota")
def quotas(stack: Stack) -> list[Json]:
    """With their limits and what they have."""
    with stack.database.read() as session:
        return kept.quota_views(session)


@router.get("/{team}", response_model=Quota, summary="Look at what a team may have, and what it has")
def quota(stack: Stack, team: TeamName) -> Json:
    """A team without a quota has no limits."""
    with stack.database.read() as session:
        return kept.quota_view(session, team)


@router.patch("/{team}", response_model=Quota, summary="Change some of a team's limits")
def change(stack: Stack, team: TeamName, change: QuotaChange) -> Json:
    """A limit that is not named stays, null lifts one. What a team has beyond a limit stays; it just gets no more."""
    with stack.database.write() as session:
        before = kept.quota_of(session, team)
        kept.set_quota(session, team, replace(before, **change.model_dump(exclude_unset=True)))
        return kept.quota_view(session, team)
