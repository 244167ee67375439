"""What people look at: read-only queries that give models and their versions as plain JSON values."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from olivepress.database.tables import AliasRow, Json, ModelRow, VersionRow
from olivepress.database.views import figures_of, figures_view
from olivepress.errors import NotFound
from olivepress.registry import VersionReference


def models(session: Session, team: str, limit: int, after: str | None = None) -> list[Json]:
    """Models of a team by name, with their newest version and their aliases.

    Args:
        after: only names behind this one: the next page.
    """
    query = select(ModelRow).where(ModelRow.team == team).order_by(ModelRow.name).limit(limit)
    if after is not None:
        query = query.where(ModelRow.name > after)
    rows = session.scalars(query).all()
    ids = [row.id for row in rows]
    newest = (
        select(func.max(VersionRow.id).label("id"), func.count().label("versions"))
        .where(VersionRow.model_id.in_(ids))
        .group_by(VersionRow.model_id)
        .subquery()
    )
    with_count = _version_columns().add_columns(newest.c.versions).join(newest, newest.c.id == VersionRow.id)
    versions = {row.model_id: row for row in session.execute(with_count)}
    aliases = _aliases(session, ids)
    return [
        {
            "name": row.name,
            "team": row.team,
            "created_at": row.created_at,
            "versions": versions[row.id].versions if row.id in versions else 0,
            "newest": _version_view(versions[row.id], aliases.get(row.id, {})) if row.id in versions else None,
            "aliases": aliases.get(row.id, {}),
        }
        for row in rows
    ]


def model(session: Session, team: str, name: str) -> Json:
    """A model with all its versions (newest first) and its aliases.

    Raises:
        NotFound: the team has no model of this name.
    """
    row = _model_row(session, team, name)
    aliases = _aliases(session, [row.id]).get(row.id, {})
    query = _version_columns().where(VersionRow.model_id == row.id).order_by(VersionRow.number.desc())
    return {
        "name": row.name,
        "team": row.team,
        "created_at": row.created_at,
        "versions": [_version_view(found, aliases) for found in session.execute(query)],
        "aliases": aliases,
    }


def version(session: Session, team: str, wanted: VersionReference) -> Json:
    """One version with its report and provenance; its files are in the store, under `artifact_digest`.

    Raises:
        NotFound: the team has no such model, version or alias.
    """
    owner = _model_row(session, team, wanted.name)
    query = select(VersionRow).where(VersionRow.model_id == owner.id)
    if wanted.number is not None:
        query = query.where(VersionRow.number == wanted.number)
    else:
        query = query.join(AliasRow, AliasRow.version_id == VersionRow.id).where(
            AliasRow.model_id == owner.id, AliasRow.name == wanted.alias
        )
    row = session.scalar(query)
    if row is None:
        raise NotFound(f"there is no version {wanted}; `olivepress models {wanted.name}` lists those that exist")
    aliases = _aliases(session, [owner.id]).get(owner.id, {})
    return {
        "model": owner.name,
        "team": owner.team,
        "number": row.number,
        "version": f"{owner.name}:{row.number}",
        "aliases": _pointing_at(row.number, aliases),
        "recipe": row.recipe_name,
        "precision": row.precision,
        "family": row.family,
        "size_bytes": row.size_bytes,
        "job_id": row.job_id,
        "created_at": row.created_at,
        "package_digest": row.package_digest,
        "artifact_digest": row.artifact_digest,
        "report": row.report,
        "provenance": row.provenance,
    }


def _model_row(session: Session, team: str, name: str) -> ModelRow:
    row = session.scalar(select(ModelRow).where(ModelRow.team == team, ModelRow.name == name))
    if row is None:
        raise NotFound(f"team '{team}' has no model '{name}'; `olivepress models` lists those that exist")
    return row


def _version_columns() -> Select[*tuple[Any, ...]]:
    return select(
        VersionRow.model_id,
        VersionRow.number,
        VersionRow.size_bytes.label("version_size_bytes"),
        VersionRow.recipe_name,
        VersionRow.precision,
        VersionRow.family,
        VersionRow.job_id,
        VersionRow.created_at,
        ModelRow.name,
        *figures_of(VersionRow.report),
    ).join(ModelRow, ModelRow.id == VersionRow.model_id)


def _version_view(row: Any, aliases: dict[str, int]) -> Json:
    return {
        "number": row.number,
        "version": f"{row.name}:{row.number}",
        "aliases": _pointing_at(row.number, aliases),
        "recipe": row.recipe_name,
        "precision": row.precision,
        "family": row.family,
        "size_bytes": row.version_size_bytes,
        "job_id": row.job_id,
        "created_at": row.created_at,
        "figures": figures_view(row),
    }


def _aliases(session: Session, model_ids: Sequence[int]) -> dict[int, dict[str, int]]:
    """Alias -> version number, by model id."""
    query = (
        select(AliasRow.model_id, AliasRow.name, VersionRow.number)
        .join(VersionRow, VersionRow.id == AliasRow.version_id)
        .where(AliasRow.model_id.in_(model_ids))
        .order_by(AliasRow.name)
    )
    found: dict[int, dict[str, int]] = {}
    for model_id, name, number in session.execute(query):
        found.setdefault(model_id, {})[name] = number
    return found


def _pointing_at(number: int, aliases: dict[str, int]) -> list[str]:
    return [alias for alias, target in aliases.items() if target == number]
