"""Models, their versions, and the files of a version."""

from collections.abc import Iterator
from itertools import chain
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import StreamingResponse

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
FilePath = Annotated[str, Path(max_length=1024, examples=["genai_config.json"])]


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
    found = _version(stack, team, name, ref)
    manifest = stack.store.manifest(found["artifact_digest"])
    files = [{"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in manifest.files]
    return found | {"files": files}


@router.get(
    "/{name}/versions/{ref}/files/{path:path}",
    summary="Download a file of a version",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The file; its ETag is its SHA-256."},
        304: {"description": "The caller has this file."},
    },
)
def file(
    stack: Stack,
    name: ModelName,
    ref: Reference,
    path: FilePath,
    team: Team = DEFAULT_TEAM,
    if_none_match: Annotated[str | None, Header(max_length=1000)] = None,
) -> Response:
    """Stream a file from the store; every chunk is verified before it is sent."""
    digest = _version(stack, team, name, ref)["artifact_digest"]
    entry = stack.store.manifest(digest).file(path)
    headers = {"ETag": f'"{entry.sha256}"', "Content-Length": str(entry.size_bytes)}
    if if_none_match is not None and entry.sha256 in if_none_match:
        return Response(status_code=304, headers={"ETag": headers["ETag"]})
    content = _begun(stack.store.open_file(digest, entry.path))
    return StreamingResponse(content, headers=headers, media_type="application/octet-stream")


def _begun(content: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, with the first chunk read: where the store is damaged there, the answer is an error."""
    return chain([next(content, b"")], content)


def _version(stack: Parts, team: str, name: str, ref: str) -> Json:
    is_number = ref.isascii() and ref.isdigit()
    if is_number and len(ref) > MAX_DIGITS:
        raise NotFound(f"there is no version {name}:{ref}; `olivepress models {name}` lists those that exist")
    wanted = VersionReference(name, number=int(ref)) if is_number else VersionReference(name, alias=ref)
    with stack.database.read() as session:
        return registry_views.version(session, team, wanted)
