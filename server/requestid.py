"""A name for each request, in its answer and in every log line that it causes.

A proxy's or a client's `X-Request-Id` is taken over when it is plain; else one is drawn. It is no secret and no proof
of anything: it only joins what belongs together.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
from contextvars import ContextVar
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER: Final = "X-Request-Id"
_PREFIX: Final = secrets.token_hex(4).encode()  # of this process
_numbers: Final = itertools.count()
_NAME: Final = HEADER.lower().encode()
_PLAIN: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
current: Final[ContextVar[str]] = ContextVar("tinysphere_request_id", default="-")


def name_of(scope: Scope) -> bytes:
    """The name that a request brings, or a new one."""
    given = next((value for name, value in scope["headers"] if name == _NAME), b"")
    return given if _PLAIN.fullmatch(given) else b"%s%08x" % (_PREFIX, next(_numbers) & 0xFFFFFFFF)


def header_of_name(name: bytes) -> tuple[bytes, bytes]:
    """The header that tells it."""
    return _NAME, name


class RequestIds:
    """Give each request its name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        raw = name_of(scope)
        token = current.set(raw.decode())

        async def send_with_name(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], header_of_name(raw)]
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
