"""Blobs of devices: uploaded in pieces, read by people."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from .. import blobs
from .files import TTL, FileLink, link, send
from .table import API, Answer, Call, Route, bounded_body


def _answer(found: blobs.Progress, status: int) -> Answer:
    headers = {"Upload-Offset": str(found.offset), "Upload-Complete": "?1" if found.complete else "?0"}
    return Answer(response=Response(status_code=status, headers=headers))


def _device(call: Call) -> str:
    assert call.principal is not None
    return call.principal.id


async def look(call: Call) -> Answer:
    """Say how much of a blob is here."""
    sha256 = blobs.check_name(call.path("sha256"))
    found = await call.run(blobs.progress, call.server.db, call.server.store, _device(call), sha256)
    return _answer(found, 200)


async def put(call: Call) -> Answer:
    """Take a piece of a blob."""
    server, headers = call.server, call.request.headers
    sha256, device = blobs.check_name(call.path("sha256")), _device(call)
    first, size = blobs.read_range(headers.get("content-range", ""), headers.get("content-length", ""))
    found = await call.run(blobs.progress, server.db, server.store, device, sha256)
    if found.complete:
        return _answer(found, 200)
    limits = blobs.Limits(server.config.blob_bytes_max, server.config.device_blobs_bytes_max)
    part = await call.run(blobs.Part.open, server.db, server.store, device, sha256, first, size, limits)
    try:
        async for piece in bounded_body(call.request, size - first, server.config.body_timeout_s):
            await call.run(part.write, piece)
        found = await call.run(part.finish, size, call.now_s)
    finally:
        await call.run(part.close)
    return _answer(found, 201 if found.complete else 202)


async def get(call: Call) -> Answer:
    """A whole blob."""
    sha256 = call.path("sha256")
    await call.run(blobs.check_uploaded, call.server.db, sha256)
    return await send(call, sha256)


async def link_blob(call: Call) -> Answer:
    """An address of a blob in the object store."""
    sha256 = call.path("sha256")
    await call.run(blobs.check_uploaded, call.server.db, sha256)
    return await link(call, sha256)


_PATH: Final = f"{API}/blobs/{{sha256}}"
_BYTES: Final = "application/octet-stream"
ROUTES: Final = (
    Route(
        "HEAD", _PATH, look, "How much of a blob is here: Upload-Offset, Upload-Complete", "device", media=_BYTES,
        statuses={200: "so much of it; 0 when nothing is"},
    ),
    Route(
        "PUT", _PATH, put, "Upload a blob, whole or in pieces", "device", raw=_BYTES, media=_BYTES, problems=(409,),
        headers=("Content-Range",),
        statuses={201: "all of it is here, durable", 202: "a part of it is here", 200: "it was here before"},
    ),
    Route(
        "GET", _PATH, get, "Fetch a blob", "read", media=_BYTES, problems=(404, 416),
        headers=("Range", "If-Range", "If-None-Match"),
        statuses={200: "the whole file", 206: "the range", 304: "the ETag is known"},
    ),
    Route(
        "GET", f"{_PATH}/link", link_blob, "An address of a blob in the object store", "read",
        answer=FileLink, problems=(404, 409), query=(TTL,),
    ),
)  # fmt: skip
