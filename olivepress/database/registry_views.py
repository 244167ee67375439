"""What people look at: read-only queries that give models and their versions as plain JSON values."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, cast, exists, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from olivepress.database.figures import figures_of, figures_view
from olivepress.database.remeasuring import validations
from olivepress.database.tables import AliasRow, Json, ModelRow, VersionRow
from olivepress.database.versions import find_model, find_version
from olivepress.registry import VersionReference, VersionSearch

# As both databases write an empty JSON object that they were given as text.
NO_FLAGS = "{}"


def models(
    session: Session, team: str, limit: int, after: str | None = None, search: VersionSearch | None = None
) -> list[Json]:
    """Models of a team by name, with their newest version and their aliases.

    Args:
        after: only names behind this one: the next page.
        search: only models with such versions; the number of versions and the newest are of those.
    """
    query = select(ModelRow).where(ModelRow.team == team).order_by(ModelRow.name).limit(limit)
    if after is not None:
        query = query.where(ModelRow.name > after)
    wanted = _conditions(search or VersionSearch())
    if search is not None:
        query = query.where(exists().where(VersionRow.model_id == ModelRow.id, *wanted))
    rows = session.scalars(query).all()
    ids = [row.id for row in rows]
    newest = (
        select(func.max(VersionRow.id).label("id"), func.count().label("versions"))
        .join(ModelRow, ModelRow.id == VersionRow.model_id)
        .where(VersionRow.model_id.in_(ids), *wanted)
        .group_by(VersionRow.model_id)
        .subquery()
    )
    with_count = _version_columns().add_columns(newest.c.versions).join(newest, newest.c.id == VersionRow.id)
    versions = {row.model_id: row for row in session.execute(with_count)}
    aliases = _aliases(session, ids)
    again = validations(session, [row.id for row in versions.values()])
    return [
        {
            "name": row.name,
            "team": row.team,
            "created_at": row.created_at,
            "versions": versions[row.id].versions if row.id in versions else 0,
            "newest": _version_view(versions[row.id], aliases.get(row.id, {}), again) if row.id in versions else None,
            "aliases": aliases.get(row.id, {}),
        }
        for row in rows
    ]


def model(session: Session, team: str, name: str, search: VersionSearch | None = None) -> Json:
    """A model with its versions (newest first), those that are searched for if given, and its aliases.

    Raises:
        NotFound: the team has no model of this name.
    """
    row = find_model(session, team, name)
    aliases = _aliases(session, [row.id]).get(row.id, {})
    wanted = _conditions(search or VersionSearch())
    query = _version_columns().where(VersionRow.model_id == row.id, *wanted).order_by(VersionRow.number.desc())
    found = session.execute(query).all()
    again = validations(session, [version.id for version in found])
    return {
        "name": row.name,
        "team": row.team,
        "created_at": row.created_at,
        "versions": [_version_view(version, aliases, again) for version in found],
        "aliases": aliases,
    }


def version(session: Session, team: str, wanted: VersionReference) -> Json:
    """One version with its report and provenance; its files are in the store, under `artifact_digest`.

    Raises:
        NotFound: the team has no such model, version or alias.
    """
    owner, row = find_version(session, team, wanted)
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
        **_standing_view(row),
        "validations": validations(session, [row.id]).get(row.id, []),
        "package_digest": row.package_digest,
        "artifact_digest": row.artifact_digest,
        "report": row.report,
        "provenance": row.provenance,
    }


def version_summary(session: Session, team: str, wanted: VersionReference) -> Json:
    """One version as lists show it; also one that is deleted.

    Raises:
        NotFound: the team has no such model, version or alias.
    """
    owner, row = find_version(session, team, wanted, also_deleted=True)
    found = session.execute(_version_columns().where(VersionRow.id == row.id)).one()
    again = validations(session, [row.id])
    return _version_view(found, _aliases(session, [owner.id]).get(owner.id, {}), again)


def _version_columns() -> Select[*tuple[Any, ...]]:
    return select(
        VersionRow.id,
        VersionRow.model_id,
        VersionRow.number,
        VersionRow.size_bytes.label("version_size_bytes"),
        VersionRow.recipe_name,
        VersionRow.precision,
        VersionRow.family,
        VersionRow.job_id,
        VersionRow.created_at,
        VersionRow.verdict,
        VersionRow.flags,
        VersionRow.deprecated_at,
        VersionRow.deprecated_by,
        VersionRow.deprecated_reason,
        VersionRow.successor,
        VersionRow.deleted_at,
        VersionRow.deleted_by,
        VersionRow.deleted_reason,
        VersionRow.files_until,
        ModelRow.name,
        *figures_of(VersionRow.report),
    ).join(ModelRow, ModelRow.id == VersionRow.model_id)


def _version_view(row: Any, aliases: dict[str, int], again: dict[int, list[Json]]) -> Json:
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
        **_standing_view(row),
        "validations": again.get(row.id, []),
        "figures": figures_view(row),
    }


def _standing_view(row: Any) -> Json:
    """What is known against a version: of a row that has the columns of one."""
    deprecated = {
        "deprecated_at": row.deprecated_at,
        "deprecated_by": row.deprecated_by,
        "reason": row.deprecated_reason,
        "successor": row.successor,
    }
    deleted = {
        "deleted_at": row.deleted_at,
        "deleted_by": row.deleted_by,
        "reason": row.deleted_reason,
        "files_until": row.files_until,
    }
    return {
        "verdict": row.verdict,
        "flags": row.flags,
        "deprecated": deprecated if row.deprecated_at is not None else None,
        "deleted": deleted if row.deleted_at is not None else None,
    }


def _is_set(column: InstrumentedAttribute[float | None], is_wanted: bool) -> ColumnElement[bool]:
    return column.is_not(None) if is_wanted else column.is_(None)


def _conditions(search: VersionSearch) -> list[ColumnElement[bool]]:
    """What a version must be; the query has its model's row too."""
    conditions: list[ColumnElement[bool]] = [_is_set(VersionRow.deleted_at, search.is_deleted)]
    for column, value in (
        (VersionRow.family, search.family),
        (VersionRow.precision, search.precision),
        (VersionRow.verdict, search.verdict),
    ):
        if value is not None:
            conditions.append(column == value)
    if search.largest_bytes is not None:
        conditions.append(VersionRow.size_bytes <= search.largest_bytes)
    if search.is_deprecated is not None:
        conditions.append(_is_set(VersionRow.deprecated_at, search.is_deprecated))
    if search.is_flagged is not None:
        flags = cast(VersionRow.flags, Text)
        conditions.append(flags != NO_FLAGS if search.is_flagged else flags == NO_FLAGS)
    if search.text is not None:
        checkpoint = VersionRow.provenance[("checkpoint", "name")].as_string()
        in_name = ModelRow.name.icontains(search.text, autoescape=True)
        conditions.append(or_(in_name, checkpoint.icontains(search.text, autoescape=True)))
    return conditions


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
