"""A team's own recipes: numbered versions that never change."""

from dataclasses import replace

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from olivepress.database.sessions import seconds_now
from olivepress.database.tables import RecipeRow
from olivepress.database.upsert import upsert
from olivepress.errors import BadRecipe, NotFound, TransientError
from olivepress.recipes.files import content_digest
from olivepress.recipes.recipe import BUILT_IN, Recipe, RecipeReference

MOST_VERSIONS = 1000


def own_recipes(session: Session, team: str, name: str | None = None) -> dict[str, list[Recipe]]:
    """The recipes that a team keeps (of this name only, if given): by name all versions but removed ones."""
    query = select(RecipeRow).where(RecipeRow.team == team, RecipeRow.removed_at.is_(None))
    if name is not None:
        query = query.where(RecipeRow.name == name)
    found: dict[str, list[Recipe]] = {}
    for row in session.scalars(query.order_by(RecipeRow.name, RecipeRow.version)):
        found.setdefault(row.name, []).append(_recipe(row))
    return found


def recipe(session: Session, team: str, wanted: RecipeReference) -> Recipe:
    """A built-in recipe or one of the team's; by its version also one that was removed.

    Raises:
        NotFound: there is none.
    """
    built_in = BUILT_IN.get(wanted.name)
    if built_in is not None and wanted.version in (None, built_in.version):
        return built_in
    query = select(RecipeRow).where(RecipeRow.team == team, RecipeRow.name == wanted.name)
    is_meant = RecipeRow.removed_at.is_(None) if wanted.version is None else RecipeRow.version == wanted.version
    row = session.scalar(query.where(is_meant).order_by(RecipeRow.version.desc()).limit(1))
    if row is None:
        raise _not_found(wanted)
    return _recipe(row)


def add(session: Session, team: str, new: Recipe) -> Recipe:
    """Keep a recipe: the version that has this content already, even a removed one, or else the next number.

    Raises:
        BadRecipe: its name has too many versions.
        TransientError: somebody else took the number first.
    """
    of_name = select(RecipeRow).where(RecipeRow.team == team, RecipeRow.name == new.name)
    digest = content_digest(new)
    known = session.scalar(of_name.where(RecipeRow.digest == digest).with_for_update())
    if known is not None:
        known.removed_at = None
        session.flush()
        return _recipe(known)
    is_of_name = (RecipeRow.team == team, RecipeRow.name == new.name)
    newest = session.scalar(select(func.max(RecipeRow.version)).where(*is_of_name)) or 0
    if newest >= MOST_VERSIONS:
        raise BadRecipe(f"the recipe '{new.name}' has {newest} versions, the most that are kept; give it a new name")
    added = replace(new, version=newest + 1)
    values = {
        "team": team,
        "name": added.name,
        "version": added.version,
        "digest": digest,
        "content": added.to_dict(),
        "created_at": seconds_now(session),
    }
    number = ["team", "name", "version"]
    insert = upsert(session, RecipeRow).values(values).on_conflict_do_nothing(index_elements=number)
    if session.scalar(insert.returning(RecipeRow.id)) is None:
        raise TransientError(f"another version of the recipe '{new.name}' was added in this very moment; add it again")
    return added


def remove(session: Session, team: str, wanted: RecipeReference) -> list[Recipe]:
    """Offer a recipe no more: all its versions, or the one that is named. Jobs that use it keep it.

    Returns:
        The versions that were removed.

    Raises:
        NotFound: there is none.
        BadRecipe: it is built in.
    """
    if wanted.name in BUILT_IN:
        raise BadRecipe(f"'{wanted.name}' is a built-in recipe, and those stay; remove one of your own")
    conditions: list[ColumnElement[bool]] = [
        RecipeRow.team == team,
        RecipeRow.name == wanted.name,
        RecipeRow.removed_at.is_(None),
    ]
    if wanted.version is not None:
        conditions.append(RecipeRow.version == wanted.version)
    rows = session.scalars(select(RecipeRow).where(*conditions).order_by(RecipeRow.version)).all()
    if not rows:
        raise _not_found(wanted)
    now = seconds_now(session)
    for row in rows:
        row.removed_at = now
    session.flush()
    return [_recipe(row) for row in rows]


def _recipe(row: RecipeRow) -> Recipe:
    return Recipe.from_dict(row.content)


def _not_found(wanted: RecipeReference) -> NotFound:
    return NotFound(f"there is no recipe '{wanted}'; `olivepress recipes` lists those that exist")
