"""The content of a version: its manifest and its files, whole or in ranges."""

import re
from collections.abc import Iterator
from itertools import chain
from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi import Path as PathParameter
from fastapi.responses import StreamingResponse

from api.routes import DEFAULT_TEAM, Stack, Team
from api.routes.models import ModelName, Reference, find_version

router = APIRouter(prefix="/models", tags=["models"])
FilePath = Annotated[str, PathParameter(max_length=1024, examples=["genai_config.json"])]
ONE_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})", re.ASCII)


@router.get(
    "/{name}/versions/{ref}/manifest",
    summary="List the files of a version and the chunks that they consist of",
    response_class=Response,
    responses={200: {"content": {"application/json": {}}, "description": "Its SHA-256 is the artifact's digest."}},
)
def manifest(stack: Stack, name: ModelName, ref: Reference, team: Team = DEFAULT_TEAM) -> Response:
    """The artifact's manifest, byte by byte as the store has it."""
    digest = find_version(stack, team, name, ref)["artifact_digest"]
    content = stack.store.manifest(digest).to_json()
    return Response(content, headers={"ETag": f'"{digest}"'}, media_type="application/json")


@router.get(
    "/{name}/versions/{ref}/files/{path:path}",
    summary="Download a file of a version",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The file; its ETag is its SHA-256."},
        206: {"content": {"application/octet-stream": {}}, "description": "The range that was asked for."},
        304: {"description": "The caller has this file."},
        416: {"description": "The file ends before the range."},
    },
)
def file(
    stack: Stack,
    name: ModelName,
    ref: Reference,
    path: FilePath,
    team: Team = DEFAULT_TEAM,
    if_none_match: Annotated[str | None, Header(max_length=1000)] = None,
    range_: Annotated[
        str | None, Header(alias="Range", max_length=1000, description="One range of bytes, such as bytes=0-1023.")
    ] = None,
) -> Response:
    """Stream a file from the store, or one range of it; every chunk is verified before it is sent."""
    digest = find_version(stack, team, name, ref)["artifact_digest"]
    entry = stack.store.manifest(digest).file(path)
    headers = {"ETag": f'"{entry.sha256}"', "Accept-Ranges": "bytes"}
    if if_none_match is not None and entry.sha256 in if_none_match:
        return Response(status_code=304, headers=headers)
    start, end = _asked(range_, entry.size_bytes) or (0, entry.size_bytes)
    if start >= end and entry.size_bytes:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{entry.size_bytes}"})
    headers["Content-Length"] = str(end - start)
    is_whole = (start, end) == (0, entry.size_bytes)
    if not is_whole:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size_bytes}"
    content = _begun(stack.store.open_file(digest, entry.path, start, end))
    return StreamingResponse(content, 200 if is_whole else 206, headers, media_type="application/octet-stream")


def _asked(range_: str | None, size_bytes: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None where the whole file is sent, as RFC 9110 has it for other ranges."""
    match = ONE_RANGE.fullmatch((range_ or "").replace(" ", ""))
    if match is None or not (match["first"] or match["last"]):
        return None
    if not match["first"]:
        return max(0, size_bytes - int(match["last"])), size_bytes
    first = int(match["first"])
    last = int(match["last"]) if match["last"] else size_bytes - 1
    return None if last < first and match["last"] else (first, min(last + 1, size_bytes))


def _begun(content: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, with the first chunk read: where the store is damaged there, the answer is an error."""
    return chain([next(content, b"")], content)
