"""Where versions come from: the document, the drawing on a page, the schema; and what came from a checkpoint."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from api.registry_schemas import Descendant
from api.routes import DEFAULT_TEAM, MAX_ID, Stack, Team
from api.routes.models import ModelName, Reference, reference_of
from olivepress.database import lineage as kept
from olivepress.database.tables import Json
from olivepress.lineage import Lineage, schema
from olivepress.reports.lineage_page import lineage_page

router = APIRouter(tags=["models"])
Digest = Annotated[
    str,
    Query(
        pattern="^[0-9a-f]{8,64}$",
        description="Of the checkpoint, as `olivepress lineage` shows it; its beginning is enough.",
        examples=["c0ffee00"],
    ),
]


@router.get("/models/{name}/versions/{ref}/lineage", response_model=Lineage, summary="Look where a version comes from")
def lineage(stack: Stack, name: ModelName, ref: Reference, team: Team = DEFAULT_TEAM) -> Json:
    """From its checkpoint over steps and artifacts to its aliases; also of a version that is deleted."""
    with stack.database.read() as session:
        return kept.lineage(session, team, reference_of(name, ref))


@router.get(
    "/models/{name}/versions/{ref}/lineage.html",
    summary="Look at a drawing of where a version comes from",
    response_class=HTMLResponse,
)
def page(stack: Stack, name: ModelName, ref: Reference, team: Team = DEFAULT_TEAM) -> HTMLResponse:
    """One self-contained page."""
    with stack.database.read() as session:
        return HTMLResponse(lineage_page(kept.lineage(session, team, reference_of(name, ref))))


@router.get("/lineage", response_model=list[Descendant], summary="List the versions that came from a checkpoint")
def descendants(
    stack: Stack,
    checkpoint: Digest,
    team: Team = DEFAULT_TEAM,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[int, Query(ge=0, le=MAX_ID, description="Only those behind this id: the next page.")] = 0,
) -> list[Json]:
    """Made of it, or of an adapter that was trained on it; deleted ones too."""
    with stack.database.read() as session:
        return kept.versions_from(session, team, checkpoint, limit, after)


@router.get("/lineage/schema", summary="The JSON schema of a lineage")
def lineage_schema() -> Json:
    """It is versioned: a key that changes its meaning makes a new one."""
    return schema()
