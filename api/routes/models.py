"""Models and their versions; contents.py has the files of a version."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from api.routes import DEFAULT_TEAM, PRINTABLE, Parts, Stack, Team
from api.schemas import Model, ModelSummary, Version
from olivepress.database import registry_views
from olivepress.database.tables import Json
from olivepress.errors import NotFound
from olivepress.registry import VersionReference

router = APIRouter(prefix="/models", tags=["models"])
ModelName = Annotated[str, Path(max_length=100, pattern=PRINTABLE, examples=["support-en-int4"])]
Reference = Annotated[
    str,
    Path(
        max_length=64,
        pattern=PRINTABLE,
        description="A version's number, or an alias such as 'latest'.",
        examples=["latest", "3"],
    ),
]
MAX_DIGITS = 9


@router.get("", response_model=list[ModelSummary], summary="List models by name")
def models(
    stack: Stack,
    team: Team = DEFAULT_TEAM,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[
        str | None, Query(max_length=100, pattern=PRINTABLE, description="Only names behind this one.")
    ] = None,
) -> list[Json]:
    """Models of a team with their newest version and their aliases."""
    with stack.database.read() as session:
        return registry_views.models(session, team, limit, after)


@router.get("/{name}", response_model=Model, summary="Look at a model, its versions and aliases")
def model(stack: Stack, name: ModelName, team: Team = DEFAULT_TEAM) -> Json:
    """All versions, newest first."""
    with stack.database.read() as session:
        return registry_views.model(session, team, name)


@router.get("/{name}/versions/{ref}", response_model=Version, summary="Look at a version")
def version(stack: Stack, name: ModelName, ref: Reference, team: Team = DEFAULT_TEAM) -> Json:
    """A version's report, provenance and files, with the SHA-256 of each file."""
    found = find_version(stack, team, name, ref)
    manifest = stack.store.manifest(found["artifact_digest"])
    files = [{"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in manifest.files]
    return found | {"files": files}


def find_version(stack: Parts, team: str, name: str, ref: str) -> Json:
    """The version that a path names.

    Raises:
        NotFound: the team has no such model, version or alias.
    """
    is_number = ref.isascii() and ref.isdigit()
    if is_number and len(ref) > MAX_DIGITS:
        raise NotFound(f"there is no version {name}:{ref}; `olivepress models {name}` lists those that exist")
    wanted = VersionReference(name, number=int(ref)) if is_number else VersionReference(name, alias=ref)
    with stack.database.read() as session:
        return registry_views.version(session, team, wanted)
