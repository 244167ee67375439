"""Where errors become HTTP: RFC 9457 problem documents for the whole hierarchy of olivepress.errors."""

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from olivepress import errors
from olivepress.errors import BadManifest, NotAllowed, NotFound, OlivepressError, PermanentError, ServiceUnavailable

PROBLEM_TYPE = "application/problem+json"
INTERNAL_ERROR = "InternalError"
SHOWN_MISTAKES = 5
log = logging.getLogger(__name__)

# The nearest class above an error decides.
STATUS: dict[type[OlivepressError], HTTPStatus] = {
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.NotAllowed: HTTPStatus.UNAUTHORIZED,
    errors.IllegalTransition: HTTPStatus.CONFLICT,
    errors.Guarded: HTTPStatus.CONFLICT,
    errors.BadArtifact: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.DiskFull: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.TransientError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.PermanentError: HTTPStatus.UNPROCESSABLE_ENTITY,
}
HEADERS = {
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"},
    HTTPStatus.SERVICE_UNAVAILABLE: {"Retry-After": "2"},
}
# What Starlette itself refuses, as a class that a client can raise.
ERROR_CLASS = {
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.UNAUTHORIZED: NotAllowed,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: BadManifest,
    HTTPStatus.SERVICE_UNAVAILABLE: ServiceUnavailable,
}


def install(app: FastAPI) -> None:
    """Make every error of the app a problem document."""
    app.add_exception_handler(OlivepressError, _known)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _unknown)


def problem(status: HTTPStatus, detail: str, error_class: str, title: str | None = None) -> JSONResponse:
    """The answer for an error.

    Args:
        detail: what, which, what now, in one line.
        error_class: the name of a class of olivepress.errors, which the client raises.
    """
    content = {
        "type": f"urn:olivepress:error:{error_class}",
        "title": title or status.phrase,
        "status": status.value,
        "detail": detail,
        "error_class": error_class,
    }
    return JSONResponse(content, status.value, HEADERS.get(status), media_type=PROBLEM_TYPE)


def status_of(error: OlivepressError) -> HTTPStatus:
    """The HTTP status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def _known(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OlivepressError)
    return problem(status_of(error), str(error), type(error).__name__, type(error).__doc__)


def _malformed(request: Request, error: Exception) -> JSONResponse:
    """A request that does not fit its schema: one line, as `olivepress.manifest.describe` says it."""
    assert isinstance(error, RequestValidationError)
    mistakes = error.errors()
    kind = BadManifest if any(item["loc"][0] == "body" for item in mistakes) else PermanentError
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, _described(mistakes), kind.__name__, kind.__doc__)


def _described(mistakes: Sequence[Any]) -> str:
    parts = []
    for item in mistakes[:SHOWN_MISTAKES]:
        place = ".".join(str(part) for part in item["loc"][1:])
        if item["type"] == "json_invalid":
            return f"the body is no JSON ({item['ctx']['error']}); send a manifest as JSON"
        message = "there is no such key" if item["type"] == "extra_forbidden" else item["msg"]
        message = message.removeprefix("Value error, ")
        parts.append(f"{place}: {message}" if place else f"the body: {message}")
    if len(mistakes) > SHOWN_MISTAKES:
        parts.append(f"and {len(mistakes) - SHOWN_MISTAKES} more")
    return "; ".join(parts)


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    detail = error.detail
    if detail == status.phrase:
        # Starlette's own words for a route or method that there is not.
        detail = f"there is no {request.method} {request.url.path}; the API's documentation lists what there is"
    answer = problem(status, detail, ERROR_CLASS.get(status, PermanentError).__name__)
    answer.headers.update(error.headers or {})
    return answer


def _unknown(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises it again after the answer, and the server logs it with its traceback.
    detail = f"the API failed at {request.method} {request.url.path}; its log says why"
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail, INTERNAL_ERROR)
