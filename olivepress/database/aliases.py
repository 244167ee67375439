"""Aliases: where they point, who moved them when and why, and the guarded moves of people.

Whoever moves one holds the lock of its model's row, so moves of one model come one after the other.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from olivepress.database.tables import AliasMoveRow, AliasRow, Json, ModelRow, VersionRow
from olivepress.database.versions import find_model, find_version, move_alias, standing
from olivepress.errors import Guarded, NotFound
from olivepress.registry import MoveCause, Order, PastMove, VersionReference, check_alias, earlier_target


@dataclass(frozen=True)
class Moved:
    """An alias and where it points now; `from_number` is None if it was not there before."""

    model: str
    alias: str
    number: int
    from_number: int | None
    overridden: tuple[str, ...] = ()
    """What spoke against it and was overridden."""

    @property
    def is_moved(self) -> bool:
        """Whether it pointed elsewhere before."""
        return self.number != self.from_number


def promote(session: Session, team: str, wanted: VersionReference, alias: str, order: Order) -> Moved:
    """Point an alias to a version, unless something is known against it.

    Raises:
        NotFound: there is no such version, or it is deleted.
        BadManifest: no alias can be called so.
        Guarded: something is known against the version, and the order does not force it.
    """
    check_alias(alias)
    model, version = find_version(session, team, wanted, lock=True)
    return _guarded_move(session, model, version, alias, MoveCause.PROMOTED, order)


def roll_back(session: Session, team: str, name: str, alias: str, order: Order) -> Moved:
    """Point an alias to the version that it pointed to before; versions that are deleted are passed over.

    Raises:
        NotFound: there is no such alias, or nothing that it pointed to before.
        Guarded: something is known against that version, and the order does not force it.
    """
    model = find_model(session, team, name, lock=True)
    if session.get(AliasRow, (model.id, alias)) is None:
        raise NotFound(f"{name} has no alias '{alias}'; `olivepress aliases {name}` lists those that exist")
    query = select(AliasMoveRow).where(AliasMoveRow.model_id == model.id, AliasMoveRow.alias == alias)
    rows = session.scalars(query.order_by(AliasMoveRow.id))
    past = [PastMove(MoveCause(row.cause), row.to_version_id) for row in rows]
    kept = session.scalars(
        select(VersionRow.id).where(VersionRow.model_id == model.id, VersionRow.deleted_at.is_(None))
    )
    target = earlier_target(past, kept)
    if target is None:
        raise NotFound(f"{name}@{alias} pointed to no other version that is still there; promote one by its number")
    return _guarded_move(session, model, session.get_one(VersionRow, target), alias, MoveCause.ROLLED_BACK, order)


def aliases(session: Session, team: str, name: str) -> Json:
    """The aliases of a model: where each points, since when, and who moved it there and why.

    Raises:
        NotFound: the team has no model of this name.
    """
    model = find_model(session, team, name)
    last = {move["alias"]: move for move in reversed(_moves(session, model, None, None, None))}
    query = (
        select(AliasRow.name, AliasRow.moved_at, VersionRow.number)
        .join(VersionRow, VersionRow.id == AliasRow.version_id)
        .where(AliasRow.model_id == model.id)
        .order_by(AliasRow.name)
    )
    found = [
        {
            "alias": alias,
            "number": number,
            "version": f"{model.name}:{number}",
            "moved_at": moved_at,
            "moved_by": last[alias]["moved_by"] if alias in last else None,
            "reason": last[alias]["reason"] if alias in last else None,
            "overridden": last[alias]["overridden"] if alias in last else [],
        }
        for alias, moved_at, number in session.execute(query)
    ]
    return {"model": model.name, "team": team, "aliases": found}


def history(
    session: Session, team: str, name: str, alias: str | None = None, limit: int = 100, before: int | None = None
) -> list[Json]:
    """The moves of a model's aliases (of one, if given), newest first; `before` an id for the next page.

    Raises:
        NotFound: the team has no model of this name.
    """
    return _moves(session, find_model(session, team, name), alias, limit, before)


def _guarded_move(
    session: Session, model: ModelRow, version: VersionRow, alias: str, cause: MoveCause, order: Order
) -> Moved:
    now = session.get(AliasRow, (model.id, alias))
    before = session.get_one(VersionRow, now.version_id).number if now is not None else None
    if before == version.number:
        return Moved(model.name, alias, version.number, before)
    objections = standing(model, version).objections()
    if objections and not order.is_forced:
        raise Guarded(
            f"{model.name}:{version.number} is not given the alias '{alias}': {'; '.join(objections)}; choose another "
            'version, or override it with --force --reason "..."'
        )
    move_alias(session, model.id, alias, version.id, cause, order, objections)
    return Moved(model.name, alias, version.number, before, tuple(objections))


def _moves(session: Session, model: ModelRow, alias: str | None, limit: int | None, before: int | None) -> list[Json]:
    source, target = aliased(VersionRow), aliased(VersionRow)
    query = (
        select(AliasMoveRow, source.number, target.number)
        .outerjoin(source, source.id == AliasMoveRow.from_version_id)
        .outerjoin(target, target.id == AliasMoveRow.to_version_id)
        .where(AliasMoveRow.model_id == model.id)
        .order_by(AliasMoveRow.id.desc())
        .limit(limit)
    )
    if alias is not None:
        query = query.where(AliasMoveRow.alias == alias)
    if before is not None:
        query = query.where(AliasMoveRow.id < before)
    return [_move_view(*row) for row in session.execute(query)]


def _move_view(row: AliasMoveRow, from_number: int | None, to_number: int | None) -> dict[str, Any]:
    return {
        "id": row.id,
        "alias": row.alias,
        "cause": row.cause,
        "from_number": from_number,
        "to_number": to_number,
        "moved_at": row.moved_at,
        "moved_by": row.moved_by,
        "reason": row.reason,
        "overridden": row.overridden,
    }
