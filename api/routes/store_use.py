"""The store: what it holds, what sharing saves, and whether it was whole when somebody looked."""

from typing import Literal

from fastapi import APIRouter

from api.routes import Stack
from api.schemas import StoreCheck, StoreUse
from olivepress.database import store_checks, store_views
from olivepress.database.tables import Json
from olivepress.errors import NotFound

router = APIRouter(prefix="/store", tags=["store"])
UNPUBLISHED = "(unpublished)"


@router.get("", response_model=StoreUse, summary="Look what the store holds, by family")
def use(stack: Stack) -> Json:
    """Logical bytes (of all files of all artifacts) and stored bytes (of distinct chunks); reads every manifest.

    A chunk that two families share counts in each of them, and once in the sum.
    """
    with stack.database.read() as session:
        families, last_check = store_views.families(session), store_checks.last(session)
    shares = stack.store.shares(lambda digest: families.get(digest, UNPUBLISHED))
    stats = stack.store.stats()
    return {
        "name": stack.store.name,
        "last_check": last_check,
        "artifacts": stats.artifacts,
        "logical_bytes": stats.logical_bytes,
        "stored_bytes": stats.stored_bytes,
        "families": [{"family": family, **vars(share)} for family, share in shares.items()],
    }


@router.get("/check", response_model=StoreCheck, summary="See what the last check of the store found")
def last_check(stack: Stack, kind: Literal["full", "fast"] = "full") -> Json:
    """The scheduler makes a full one now and then, and `olivepress store check` where the store is. Starts none."""
    with stack.database.read() as session:
        found = store_checks.last(session, kind)
    if found is None:
        raise NotFound(f"no {kind} check of the store was made yet; run `olivepress store check` where the store is")
    return found
