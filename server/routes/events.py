"""What happens, as it happens: server-sent events over a cursor in the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .. import feed
from ..errors import TinySphereError
from ..retention import DAY_S
from .table import API, Answer, Call, Param, Route, identify

RETRY_MS: Final = 3000
_ROUND_S: Final = 0.25  # how soon a stopping server ends a stream


async def follow(call: Call) -> Answer:
    """Send what happens, from the given id or from now on."""
    wanted = feed.Wanted(feed.check_types(call.names("types")), call.text("device"), call.text("model"))
    given = call.request.headers.get("last-event-id") or call.text("after") or None
    days = call.server.config.keep.days["feed"]
    keep_s = None if days is None else days * DAY_S
    cursor, missing = await call.run(feed.begin, call.server.db, given, keep_s, call.now_s)
    call.server.followers.enter(call.who)  # given back when the stream ends
    headers = {"X-Accel-Buffering": "no"}  # nginx would keep events until there are many
    return Answer(response=_Stream(call, _stream(call, wanted, cursor, missing), headers))


class _Stream(StreamingResponse):
    """A stream that gives its place back, also when it never began."""

    def __init__(self, call: Call, content: AsyncIterator[bytes], headers: dict[str, str]) -> None:
        super().__init__(content, headers=headers, media_type="text/event-stream")
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._call.server.followers.leave(self._call.who)


async def _stream(call: Call, wanted: feed.Wanted, cursor: feed.Cursor, missing: str) -> AsyncIterator[bytes]:
    config, started_s = call.server.config, time.monotonic()
    yield f"retry: {RETRY_MS}\n\n".encode()
    # The first id, so that who is cut off before anything happens goes on from here.
    yield _event("missing" if missing else "ready", cursor, msgspec.json.encode({"detail": missing} if missing else {}))
    spoke_s = checked_s = started_s
    while time.monotonic() - started_s < config.events_life_s:
        try:
            events, cursor, has_more = await call.run(feed.after, call.server.db, cursor, wanted)
        except TinySphereError:
            return  # the database is away: the follower comes again, with its last id
        for place, event in events:
            yield _event(event.type, place, msgspec.json.encode(event))
        now_s = time.monotonic()
        if events:
            spoke_s = now_s
        elif now_s - spoke_s >= config.events_heartbeat_s:
            yield b": alive\n\n"
            spoke_s = now_s
        if now_s - checked_s >= config.events_heartbeat_s:
            checked_s = now_s
            try:
                await call.run(identify, call, ROUTES[0])
            except TinySphereError:
                return  # the token was revoked, or may no longer read
        if not has_more and await _is_over(call, config.events_poll_s):
            return


async def _is_over(call: Call, seconds: float) -> bool:
    """Wait, unless the server stops meanwhile; whether it does."""
    until_s = time.monotonic() + seconds
    while not call.server.stopping.is_set():
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return False
        await asyncio.sleep(min(left_s, _ROUND_S))
    return True


def _event(type: str, cursor: feed.Cursor, data: bytes) -> bytes:
    return f"id: {cursor}\nevent: {type}\ndata: ".encode() + data + b"\n\n"


ROUTES: Final = (
    Route(
        "GET", f"{API}/events", follow, "Follow what happens, as server-sent events", "read",
        media="text/event-stream", headers=("Last-Event-ID",),
        query=(
            Param("types", about=f"only these, with commas: {', '.join(feed.KINDS)}"),
            Param("device", about="only of this device's id"),
            Param("model", about="only of this model"),
            Param("after", about="the same as Last-Event-ID, for clients that cannot send it"),
        ),
        statuses={200: "events until one of the two ends it"},
    ),
)  # fmt: skip
