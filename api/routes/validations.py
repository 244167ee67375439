"""Validations: published versions measured again, by order or because the runtime is another one."""

from http import HTTPStatus

from fastapi import APIRouter, Response

from api.measuring_schemas import Recertification, Recertifications, StartedRecertifications
from api.model_schemas import Validation
from api.routes import DEFAULT_TEAM, Stack, Team
from api.routes.accepting import answer_accepted
from api.routes.models import ModelName, Reference, reference_of
from api.schemas import SubmittedBatch
from olivepress import measuring_again, recertification
from olivepress.database import remeasuring
from olivepress.database.tables import Json
from olivepress.database.versions import find_version
from olivepress.job_orders import ValidationOrder

router = APIRouter(tags=["models"])


@router.post(
    "/models/{name}/versions/{ref}/validations", status_code=HTTPStatus.ACCEPTED, summary="Measure a version again"
)
def validate(
    order: ValidationOrder, response: Response, stack: Stack, name: ModelName, ref: Reference, team: Team = DEFAULT_TEAM
) -> SubmittedBatch:
    """A job that measures the version anew; nothing is published, and no alias moves. Its report is the job's."""
    accepted = measuring_again.validate(stack.database, stack.store.has, team, reference_of(name, ref), order)
    return answer_accepted(stack, accepted, response)


@router.get(
    "/models/{name}/versions/{ref}/validations",
    response_model=list[Validation],
    summary="List what was measured of a version again",
)
def validations(stack: Stack, name: ModelName, ref: Reference, team: Team = DEFAULT_TEAM) -> list[Json]:
    """Oldest first; also what still runs."""
    with stack.database.read() as session:
        _, version = find_version(session, team, reference_of(name, ref), also_deleted=True)
        return remeasuring.validations(session, [version.id]).get(version.id, [])


@router.get("/recertifications", summary="Look which versions are to be certified again")
def plan(stack: Stack) -> Recertifications:
    """Every version that an alias points to, of all teams, held against the runtime of the living workers."""
    runtime, planned = recertification.look(stack.database)
    versions = [
        Recertification(
            version=one.candidate.version,
            team=one.candidate.team,
            aliases=list(one.candidate.aliases),
            certified_with=one.candidate.certified_with,
            due=one.due,
            last_job_id=one.candidate.last.job_id if one.candidate.last else None,
            last_state=one.candidate.last.state if one.candidate.last else None,
        )
        for one in planned
    ]
    return Recertifications(runtime=runtime, versions=versions, is_automatic=stack.settings.recertify == "on")


@router.post("/recertifications", status_code=HTTPStatus.ACCEPTED, summary="Certify again what is due")
def start(stack: Stack) -> StartedRecertifications:
    """Starts now what the scheduler would start, all of it at once and also where it starts nothing by itself."""
    started = recertification.start_due(stack.database, stack.store.has, most=None)
    if started.jobs:
        stack.ring()
    return StartedRecertifications(jobs=list(started.jobs), problems=started.problems)
