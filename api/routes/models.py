"""Models and their versions; contents.py has the files of a version, registry.py what changes one."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from api.model_schemas import Model, ModelSummary, Version
from api.routes import DEFAULT_TEAM, MAX_ID, PRINTABLE, Parts, Stack, Team
from olivepress.database import registry_views
from olivepress.database.tables import Json
from olivepress.errors import NotFound
from olivepress.registry import VerdictKind, VersionReference, VersionSearch

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


Word = Annotated[str | None, Query(max_length=100, pattern=PRINTABLE)]


def _search(
    family: Word = None,
    precision: Word = None,
    verdict: Annotated[VerdictKind | None, Query(description="Of the gates, when it was published.")] = None,
    max_size: Annotated[int | None, Query(ge=0, le=MAX_ID, description="At most so many bytes.")] = None,
    text: Annotated[
        str | None, Query(min_length=1, max_length=100, description="In the model's or the checkpoint's name.")
    ] = None,
    deprecated: Annotated[bool | None, Query(description="Only those that are, or are not.")] = None,
    flagged: Annotated[bool | None, Query(description="Only those that something is known against, or not.")] = None,
    deleted: Annotated[bool, Query(description="Those that are deleted, instead of those that are not.")] = False,
) -> VersionSearch | None:
    """What is searched for; None where nothing is."""
    # PostgreSQL takes no NUL in a text, and no name has one.
    found = VersionSearch(
        family, precision, verdict, max_size, text and text.replace("\0", "\ufffd"), deprecated, flagged, deleted
    )
    return found if found != VersionSearch() else None


Search = Annotated[VersionSearch | None, Depends(_search)]


@router.get("", response_model=list[ModelSummary], summary="List or search models by name")
def models(
    stack: Stack,
    search: Search,
    team: Team = DEFAULT_TEAM,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[
        str | None, Query(max_length=100, pattern=PRINTABLE, description="Only names behind this one.")
    ] = None,
) -> list[Json]:
    """Models of a team with their newest version and their aliases.

    A search gives the models that have such versions; the number of versions and the newest are then of those.
    """
    with stack.database.read() as session:
        return registry_views.models(session, team, limit, after, search)


@router.get("/{name}", response_model=Model, summary="Look at a model, its versions and aliases")
def model(stack: Stack, search: Search, name: ModelName, team: Team = DEFAULT_TEAM) -> Json:
    """All versions, or those that are searched for; newest first."""
    with stack.database.read() as session:
        return registry_views.model(session, team, name, search)


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
    with stack.database.read() as session:
        return registry_views.version(session, team, reference_of(name, ref))


def reference_of(name: str, ref: str) -> VersionReference:
    """The reference that a path writes in two parts.

    Raises:
        NotFound: no version has a number like this.
    """
    is_number = ref.isascii() and ref.isdigit()
    if is_number and len(ref) > MAX_DIGITS:
        raise NotFound(f"there is no version {name}:{ref}; `olivepress models {name}` lists those that exist")
    return VersionReference(name, number=int(ref)) if is_number else VersionReference(name, alias=ref)
