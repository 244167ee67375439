"""The FastAPI application: its routes, its documentation, and the parts that it is given."""

from collections.abc import Callable
from typing import Any

from fastapi import Depends, FastAPI
from fastapi_swagger import patch_fastapi
from pydantic import SecretStr

import olivepress
from api import errors
from api.routes import (
    Parts,
    batches,
    contents,
    costs,
    health,
    imports,
    jobs,
    keys,
    lineage,
    models,
    quotas,
    recipes,
    registry,
    reports,
    retention,
    store_use,
    validations,
)
from api.security import BodyLimit, require_admin
from olivepress.database.sessions import Database
from olivepress.errors import NotAllowed
from olivepress.settings import Settings
from olivepress.store import Store

PREFIX = "/v1"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
DESCRIPTION = """
Fine-tuned checkpoints in, certified models for Foundry Local out.

Submit a **batch**: every checkpoint with every recipe becomes a **job** of five **steps** (ingest, convert, package,
validate, publish). A job that succeeds has published a **model version**.

Every request under `/v1` carries `Authorization: Bearer <admin key>`. An error is a problem document (RFC 9457)
whose `error_class` names a class of `olivepress.errors`. Times are seconds since 1970.
"""
TAGS = [
    {"name": "batches", "description": "Checkpoints that were submitted together."},
    {"name": "jobs", "description": "One checkpoint and one recipe, with steps, attempts and logs."},
    {"name": "models", "description": "Published versions, their reports and files."},
    {"name": "recipes", "description": "What a checkpoint can be turned into: built in, and a team's own."},
    {"name": "health", "description": "The parts of the stack, the workers."},
    {"name": "quotas", "description": "What teams may have, and what they have."},
    {"name": "retention", "description": "What is too old to keep."},
    {"name": "store", "description": "What the store holds."},
]
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": meaning,
        "content": {errors.PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status, meaning in {
        401: "The admin key is missing or wrong.",
        404: "Nothing has this name or number.",
        409: "Something that is published speaks against it.",
        413: "The body is larger than 16 MiB.",
        422: "The request itself is wrong.",
        503: "A part of the stack does not answer.",
    }.items()
}


def create_app(settings: Settings, database: Database, store: Store, ring: Callable[[], None]) -> FastAPI:
    """The API over these parts.

    Args:
        ring: wakes the scheduler; called after a commit that left it work.

    Raises:
        NotAllowed: no admin key is set; an API that anybody may use does not start.
    """
    is_local = settings.api_host in LOOPBACK
    app = FastAPI(
        title="olivepress",
        version=olivepress.__version__,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        # Beyond this machine, nobody without the key learns anything.
        openapi_url="/openapi.json" if is_local else None,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    if is_local:
        # FastAPI's own page loads its scripts from elsewhere and stays blank without internet; this one brings them.
        patch_fastapi(app)
    app.state.parts = Parts(settings, _admin_key(settings.admin_key), database, store, ring)
    app.add_middleware(BodyLimit)
    errors.install(app)
    app.include_router(health.open_router)
    for router in (
        batches.router,
        jobs.router,
        models.router,
        contents.router,
        registry.router,
        lineage.router,
        store_use.router,
        reports.router,
        health.router,
        costs.router,
        retention.router,
        recipes.router,
        keys.router,
        quotas.router,
        validations.router,
        imports.router,
    ):
        app.include_router(router, prefix=PREFIX, dependencies=[Depends(require_admin)], responses=PROBLEMS)
    return app


def _admin_key(key: SecretStr | None) -> str:
    value = key.get_secret_value() if key else ""
    if not value:
        raise NotAllowed("the API has no admin key; set OLIVEPRESS_ADMIN_KEY, or let `olivepress up` make one")
    return value
