"""Deleting versions: at once for whoever asks, for good only when the grace period is over.

The row stays for ever, with report and provenance: its number is never given again, and lineage still finds it. Its
files are those that `has_files` no longer claims; retention removes them.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from olivepress.database.quotas import check_version
from olivepress.database.sessions import DatabaseNow, seconds_now
from olivepress.database.tables import AliasRow, ModelRow, VersionRow
from olivepress.database.versions import find_version, move_alias, standing
from olivepress.errors import Guarded, PermanentError
from olivepress.registry import LATEST, MoveCause, Order, VersionReference

# An undelete that began before the end of the grace period has committed by then: no transaction lasts so long.
MARGIN_S = 600.0


@dataclass(frozen=True)
class Deleted:
    """A version that is deleted, until when it can be undeleted, and where its aliases point now (None: gone)."""

    version: str
    files_until: float
    aliases: dict[str, int | None]


def has_files() -> ColumnElement[bool]:
    """Whether a version's artifacts must stay in the store."""
    return or_(VersionRow.deleted_at.is_(None), VersionRow.files_until > DatabaseNow() - MARGIN_S)


def delete(session: Session, team: str, wanted: VersionReference, order: Order, grace_s: float) -> Deleted:
    """Delete a version. By force also one that aliases point to: `latest` then goes to the newest version that is
    left and has nothing against it, other aliases go.

    Raises:
        NotFound: there is no such version, or it is deleted already.
        Guarded: aliases point to it, and the order does not force it.
    """
    model, version = find_version(session, team, wanted, lock=True)
    name = f"{model.name}:{version.number}"
    pointing = select(AliasRow.name).where(AliasRow.model_id == model.id, AliasRow.version_id == version.id)
    aliases = sorted(session.scalars(pointing))
    if aliases and not order.is_forced:
        raise Guarded(
            f"{name} is not deleted: {_named(aliases)} to it; promote another version first, or override it with "
            '--force --reason "..."'
        )
    now = seconds_now(session)
    version.deleted_at, version.deleted_by, version.deleted_reason = now, order.by, order.reason
    version.files_until = now + grace_s
    session.flush()
    moved = {alias: _release(session, model, alias, order) for alias in aliases}
    return Deleted(name, version.files_until, moved)


def undelete(session: Session, team: str, wanted: VersionReference) -> str:
    """Take a deletion back within its grace period; aliases that went with it do not come back.

    Returns:
        The version, as NAME:3.

    Raises:
        NotFound: there is no such version.
        PermanentError: it is not deleted, the grace period is over, or its content was published again.
        QuotaExceeded: the team has no room for it any more.
    """
    model, version = find_version(session, team, wanted, lock=True, also_deleted=True)
    name = f"{model.name}:{version.number}"
    if version.deleted_at is None:
        raise PermanentError(f"{name} is not deleted; there is nothing to take back")
    if (version.files_until or 0.0) <= seconds_now(session):
        raise PermanentError(f"the grace period of {name} is over and its files go; submit its checkpoint again")
    again = select(VersionRow.number).where(
        VersionRow.model_id == model.id,
        VersionRow.package_digest == version.package_digest,
        VersionRow.deleted_at.is_(None),
    )
    if (number := session.scalar(again)) is not None:
        raise PermanentError(f"what {name} holds was published again as {model.name}:{number}; use that one")
    check_version(session, team, version.size_bytes)
    version.deleted_at = version.deleted_by = version.deleted_reason = version.files_until = None
    session.flush()
    return name


def _named(aliases: list[str]) -> str:
    if len(aliases) == 1:
        return f"the alias '{aliases[0]}' points"
    return f"the aliases {', '.join(repr(alias) for alias in aliases)} point"


def _release(session: Session, model: ModelRow, alias: str, order: Order) -> int | None:
    """Move an alias away from a version that was deleted; the number of the version that it points to now."""
    heir: VersionRow | None = None
    if alias == LATEST:
        kept = select(VersionRow).where(VersionRow.model_id == model.id, VersionRow.deleted_at.is_(None))
        newest_first = session.scalars(kept.order_by(VersionRow.number.desc()))
        heir = next((row for row in newest_first if not standing(model, row).objections()), None)
    move_alias(session, model.id, alias, heir.id if heir else None, MoveCause.DELETED, order)
    return heir.number if heir else None
