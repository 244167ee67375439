"""Who may call the API, and how large a request may be."""

import hmac
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import problem
from api.routes import Parts, parts_of
from olivepress.errors import BadManifest, NotAllowed

MAX_BODY_BYTES = 16 * 1024 * 1024
TOO_LARGE = f"the request is larger than {MAX_BODY_BYTES // 2**20} MiB; split the batch into several"

_bearer = HTTPBearer(auto_error=False, scheme_name="admin key", description="The admin key, as `olivepress up` shows.")


def require_admin(
    parts: Annotated[Parts, Depends(parts_of)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> None:
    """Let a request pass that carries the admin key.

    Raises:
        NotAllowed: it carries none, or another one.
    """
    if credentials is None:
        raise NotAllowed(
            "the request carries no key; set OLIVEPRESS_API_KEY, or send 'Authorization: Bearer <admin key>'"
        )
    if not hmac.compare_digest(credentials.credentials.encode(), parts.admin_key.encode()):
        raise NotAllowed("this is not the admin key; `olivepress up` shows where the right one lies")


class BodyLimit:
    """ASGI middleware that refuses bodies beyond MAX_BODY_BYTES, whether or not they state their length."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stated = Headers(scope=scope).get("content-length", "")
        if stated.isdecimal() and int(stated) > MAX_BODY_BYTES:
            answer = problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE, BadManifest.__name__)
            await answer(scope, receive, send)
            return
        received_bytes = 0

        async def counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > MAX_BODY_BYTES:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE)
            return message

        await self._app(scope, counted, send)
