"""The public keys that published versions are signed with."""

from fastapi import APIRouter

from api.routes import Stack
from api.schemas import SigningKey
from olivepress.database import signing_keys
from olivepress.database.tables import Json

router = APIRouter(prefix="/keys", tags=["models"])


@router.get("", response_model=list[SigningKey], summary="List the public keys that sign, the newest first")
def keys(stack: Stack) -> list[Json]:
    """Ed25519 keys. One that replaced another was signed by it, so that who knows the old can believe the new."""
    with stack.database.read() as session:
        return signing_keys.keys(session)
