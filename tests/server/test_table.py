"""Bodies that end, pause or never end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from tinysphere.errors import BadRequestError, BusyError, TooLargeError
from tinysphere.routes.table import Room, bounded_body


def read(messages: list[dict[str, Any]], bytes_max: int = 100, length: str = "") -> bytes:
    async def receive() -> dict[str, Any]:
        if not messages:
            await asyncio.sleep(60)  # a peer that has stopped sending
        return messages.pop(0)

    headers = [(b"content-length", length.encode())] if length else []
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)

    async def collect() -> bytes:
        return b"".join([piece async for piece in bounded_body(request, bytes_max, 0.05)])

    return asyncio.run(collect())


def part(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_whole_body_is_read() -> None:
    assert read([part(b"ab", more=True), part(b"c", more=False)]) == b"abc"


def test_a_body_that_pauses_or_breaks_is_given_up() -> None:
    with pytest.raises(BadRequestError, match=r"within 0.05 s"):
        read([part(b"ab", more=True)])
    with pytest.raises(BadRequestError, match="connection ended"):
        read([part(b"ab", more=True), {"type": "http.disconnect"}])


def test_a_body_that_is_too_long_is_refused_as_soon_as_that_is_known() -> None:
    with pytest.raises(TooLargeError, match="longer than"):
        read([part(b"x" * 60, more=True), part(b"x" * 60, more=True), part(b"never read", more=False)])
    with pytest.raises(TooLargeError, match="has 101 bytes"):
        read([], length="101")


def test_large_bodies_share_their_room_and_a_single_one_always_finds_some() -> None:
    room = Room(100)
    room.take(150)
    with pytest.raises(BusyError) as caught:
        room.take(1)
    assert caught.value.retry_after_s
    room.give(150)
    room.take(60)
    room.take(40)
    with pytest.raises(BusyError):
        room.take(1)
    room.give(100)
    assert room.used == 0
