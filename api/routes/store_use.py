"""The store: what it holds, and what sharing saves."""

from fastapi import APIRouter

from api.routes import Stack
from api.schemas import StoreUse
from olivepress.database import store_views
from olivepress.database.tables import Json

router = APIRouter(prefix="/store", tags=["store"])
UNPUBLISHED = "(unpublished)"


@router.get("", response_model=StoreUse, summary="Look what the store holds, by family")
def use(stack: Stack) -> Json:
    """Logical bytes (of all files of all artifacts) and stored bytes (of distinct chunks); reads every manifest.

    A chunk that two families share counts in each of them, and once in the sum.
    """
    with stack.database.read() as session:
        families = store_views.families(session)
    shares = stack.store.shares(lambda digest: families.get(digest, UNPUBLISHED))
    stats = stack.store.stats()
    return {
        "name": stack.store.name,
        "artifacts": stats.artifacts,
        "logical_bytes": stats.logical_bytes,
        "stored_bytes": stats.stored_bytes,
        "families": [{"family": family, **vars(share)} for family, share in shares.items()],
    }
