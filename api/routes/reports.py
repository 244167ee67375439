"""Reports of versions: the document, the page, the schema."""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from api.routes import DEFAULT_TEAM, Stack, Team
from api.routes.models import ModelName, Reference, find_version
from olivepress.database.tables import Json
from olivepress.reports.document import document_of, schema
from olivepress.reports.pages import report_page

router = APIRouter(tags=["models"])


@router.get("/models/{name}/versions/{ref}/report", summary="Read a version's report")
def report(stack: Stack, name: ModelName, ref: Reference, team: Team = DEFAULT_TEAM) -> Json:
    """What was measured of a version, with its gates and certificate; /v1/reports/schema describes it."""
    return document_of(find_version(stack, team, name, ref))


@router.get(
    "/models/{name}/versions/{ref}/report.html", summary="Look at a version's report", response_class=HTMLResponse
)
def page(stack: Stack, name: ModelName, ref: Reference, team: Team = DEFAULT_TEAM) -> HTMLResponse:
    """One self-contained page."""
    return HTMLResponse(report_page(document_of(find_version(stack, team, name, ref))))


@router.get("/reports/schema", summary="The JSON schema of reports")
def report_schema() -> Json:
    """It is versioned: a key that changes its meaning makes a new one."""
    return schema()
