"""The public keys that versions were signed with: what the API tells, and what a publication makes sure of."""

import base64

from sqlalchemy import ColumnElement, exists, or_, select, true
from sqlalchemy.orm import Session

from olivepress.database.sessions import DatabaseNow
from olivepress.database.tables import Json, SigningKeyRow, StepRow
from olivepress.database.upsert import upsert
from olivepress.evidence.signing import PublicKey
from olivepress.jobs import PUBLISHING_STEPS


def note(session: Session, key: PublicKey, endorsed_by: PublicKey | None = None, endorsement: bytes = b"") -> None:
    """See that a key is known.

    Args:
        endorsed_by: the key that it replaces, and whose signature of it is `endorsement`.
    """
    values = {
        "id": key.id,
        "public_key": key.text,
        "created_at": DatabaseNow(),
        "endorsed_by": endorsed_by.id if endorsed_by else None,
        "endorsement": base64.b64encode(endorsement).decode() if endorsed_by else None,
    }
    session.execute(upsert(session, SigningKeyRow).values(values).on_conflict_do_nothing(index_elements=["id"]))


def has_any(session: Session) -> bool:
    """Whether this stack signs what it publishes."""
    return session.scalar(select(SigningKeyRow.id).limit(1)) is not None


def lets_claim(signs: bool) -> ColumnElement[bool]:
    """Steps that a worker with or without the key may take: without it, none that publishes once the stack signs."""
    return true() if signs else or_(StepRow.kind.not_in(PUBLISHING_STEPS), ~exists(select(SigningKeyRow.id)))


def keys(session: Session) -> list[Json]:
    """All keys, the newest first."""
    query = select(SigningKeyRow).order_by(SigningKeyRow.created_at.desc(), SigningKeyRow.id)
    return [
        {
            "id": row.id,
            "public_key": row.public_key,
            "created_at": row.created_at,
            "endorsed_by": row.endorsed_by,
            "endorsement": row.endorsement,
        }
        for row in session.scalars(query)
    ]
