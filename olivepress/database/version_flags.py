"""Flags and deprecation: what is known against a version that is published. Its content never changes by them."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from olivepress.database.sessions import seconds_now
from olivepress.database.tables import VersionRow
from olivepress.database.versions import find_version
from olivepress.errors import BadManifest, NotFound
from olivepress.registry import MOST_TEXT, Order, VersionFlag, VersionReference, check_text, parse_reference


def flag(session: Session, version_id: int, name: VersionFlag | str, reason: str) -> None:
    """Flag a version: no alias is moved to it unless by force. A flag that it has gets the new reason and time.

    Raises:
        BadManifest: there is no such flag, or the reason is empty.
        NotFound: there is no such version.
    """
    kind = _known(name)
    # Reasons come from reports, which hold any text.
    line = " ".join("".join(one if one.isprintable() else " " for one in reason).split())
    row = _locked(session, version_id)
    now = seconds_now(session)
    row.flags = row.flags | {kind.value: {"reason": check_text(line[:MOST_TEXT], "a reason"), "flagged_at": now}}
    session.flush()


def unflag(session: Session, version_id: int, name: VersionFlag | str) -> bool:
    """Take a flag from a version; False if it did not have it.

    Raises:
        BadManifest: there is no such flag.
        NotFound: there is no such version.
    """
    kind = _known(name)
    row = _locked(session, version_id)
    if kind.value not in row.flags:
        return False
    row.flags = {flag: entry for flag, entry in row.flags.items() if flag != kind.value}
    session.flush()
    return True


def deprecate(session: Session, team: str, wanted: VersionReference, order: Order, successor: str | None) -> None:
    """Say that a version should not be used any more; it stays, and so do aliases that point to it.

    Args:
        successor: what to use instead, as NAME, NAME:3 or NAME@production.

    Raises:
        NotFound: there is no such version, or no such successor.
        BadManifest: there is no reason, or the version would be its own successor.
    """
    if order.reason is None:
        raise BadManifest('say why it should not be used any more; add --reason "..."')
    _, row = find_version(session, team, wanted, lock=True)
    if successor is not None:
        _, other = find_version(session, team, parse_reference(successor))
        if other.id == row.id:
            raise BadManifest(f"{successor} is the version that is deprecated; name another one as its successor")
    row.deprecated_at = seconds_now(session)
    row.deprecated_by, row.deprecated_reason, row.successor = order.by, order.reason, successor
    session.flush()


def undeprecate(session: Session, team: str, wanted: VersionReference) -> bool:
    """Take a deprecation back; False if the version was not deprecated.

    Raises:
        NotFound: there is no such version.
    """
    _, row = find_version(session, team, wanted, lock=True)
    if row.deprecated_at is None:
        return False
    row.deprecated_at = row.deprecated_by = row.deprecated_reason = row.successor = None
    session.flush()
    return True


def _known(name: VersionFlag | str) -> VersionFlag:
    try:
        return VersionFlag(name)
    except ValueError:
        known = ", ".join(VersionFlag)
        raise BadManifest(f"'{name}' is no flag of a version; those that exist: {known}") from None


def _locked(session: Session, version_id: int) -> VersionRow:
    row = session.scalar(select(VersionRow).where(VersionRow.id == version_id).with_for_update())
    if row is None:
        raise NotFound(f"there is no version with the id {version_id}")
    return row
