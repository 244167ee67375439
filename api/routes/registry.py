"""What people change about versions: where aliases point, what is deprecated, what is deleted."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from api.model_schemas import VersionSummary
from api.registry_schemas import (
    Aliases,
    AliasMove,
    DeletedVersion,
    DeprecationOrder,
    ForcedChange,
    MovedAlias,
    Promotion,
    Undone,
)
from api.routes import DEFAULT_TEAM, PRINTABLE, BeforeId, Stack, Team
from api.routes.models import ModelName, Reference, reference_of
from olivepress.database import aliases, deletion, registry_views, version_flags
from olivepress.database.tables import Json
from olivepress.retention import DAY_S

router = APIRouter(prefix="/models", tags=["models"])
AliasName = Annotated[str, Path(max_length=64, pattern=PRINTABLE, examples=["production"])]


@router.get("/{name}/aliases", response_model=Aliases, summary="List the aliases of a model")
def list_aliases(stack: Stack, name: ModelName, team: Team = DEFAULT_TEAM) -> Json:
    """Where each points, since when, and who moved it there."""
    with stack.database.read() as session:
        return aliases.aliases(session, team, name)


@router.get("/{name}/aliases/history", response_model=list[AliasMove], summary="List the moves of a model's aliases")
def history(
    stack: Stack,
    name: ModelName,
    team: Team = DEFAULT_TEAM,
    alias: Annotated[str | None, Query(max_length=64, pattern=PRINTABLE)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: BeforeId = None,
) -> list[Json]:
    """Newest first, publications among them."""
    with stack.database.read() as session:
        return aliases.history(session, team, name, alias, limit, before)


@router.put("/{name}/aliases/{alias}", response_model=MovedAlias, summary="Point an alias to a version")
def promote(stack: Stack, name: ModelName, alias: AliasName, wanted: Promotion, team: Team = DEFAULT_TEAM) -> Json:
    """409 where something is known against the version; `force` with a reason overrides that, and both are kept."""
    reference = reference_of(name, wanted.version)
    with stack.database.write() as session:
        return _moved(aliases.promote(session, team, reference, alias, wanted.forced_order(team)))


@router.post("/{name}/aliases/{alias}/back", response_model=MovedAlias, summary="Move an alias back")
def roll_back(stack: Stack, name: ModelName, alias: AliasName, wanted: ForcedChange, team: Team = DEFAULT_TEAM) -> Json:
    """To the version that it pointed to before; back again leads one move further."""
    with stack.database.write() as session:
        return _moved(aliases.roll_back(session, team, name, alias, wanted.forced_order(team)))


@router.put("/{name}/versions/{ref}/deprecation", response_model=VersionSummary, summary="Deprecate a version")
def deprecate(
    stack: Stack, name: ModelName, ref: Reference, wanted: DeprecationOrder, team: Team = DEFAULT_TEAM
) -> Json:
    """It stays, and whoever uses it is told why it should not be used, and what instead."""
    reference = reference_of(name, ref)
    with stack.database.write() as session:
        version_flags.deprecate(session, team, reference, wanted.order(team), wanted.successor)
        return registry_views.version_summary(session, team, reference)


@router.delete("/{name}/versions/{ref}/deprecation", response_model=Undone, summary="Take a deprecation back")
def undeprecate(stack: Stack, name: ModelName, ref: Reference, team: Team = DEFAULT_TEAM) -> Json:
    """A version that is not deprecated stays as it is."""
    reference = reference_of(name, ref)
    with stack.database.write() as session:
        was_undone = version_flags.undeprecate(session, team, reference)
        version = registry_views.version_summary(session, team, reference)["version"]
    return {"version": version, "was_undone": was_undone}


@router.post("/{name}/versions/{ref}/delete", response_model=DeletedVersion, summary="Delete a version")
def delete(stack: Stack, name: ModelName, ref: Reference, wanted: ForcedChange, team: Team = DEFAULT_TEAM) -> Json:
    """409 while an alias points to it; `force` with a reason overrides that. Its number is never given again."""
    grace_s = stack.settings.deleted_versions_days * DAY_S
    with stack.database.write() as session:
        return vars(deletion.delete(session, team, reference_of(name, ref), wanted.forced_order(team), grace_s))


@router.post("/{name}/versions/{ref}/undelete", response_model=Undone, summary="Take a deletion back")
def undelete(stack: Stack, name: ModelName, ref: Reference, team: Team = DEFAULT_TEAM) -> Json:
    """Within its grace period. Aliases that went with it do not come back."""
    with stack.database.write() as session:
        return {"version": deletion.undelete(session, team, reference_of(name, ref)), "was_undone": True}


def _moved(moved: aliases.Moved) -> Json:
    return vars(moved) | {"is_moved": moved.is_moved, "overridden": list(moved.overridden)}
