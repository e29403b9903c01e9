"""A name for each request, in its answer and in every log line that it causes.

A proxy's or a client's `X-Request-Id` is taken over when it is plain; else one is drawn. It is no secret and no proof
of anything: it only joins what belongs together.
"""

from __future__ import annotations

import logging
import re
import secrets
from contextvars import ContextVar
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER: Final = "X-Request-Id"
_PLAIN: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
current: Final[ContextVar[str]] = ContextVar("tinysphere_request_id", default="-")


class RequestIds:
    """Give each request its name: the outermost middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if _PLAIN.fullmatch(given) else secrets.token_hex(8)
        token = current.set(name)

        async def send_with_name(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        try:
            await self._app(scope, receive, send_with_name)
        finally:
            current.reset(token)


class RequestIdFilter(logging.Filter):
    """Puts the name of the request into log records as `request_id`; `-` outside of any."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Every record passes."""
        record.request_id = current.get()
        return True
