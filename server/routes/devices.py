"""What devices ask, and what people ask of devices."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.responses import Response
from tinylcm import wire

from .. import deployments, fleet, ingest, registry
from ..db import Page
from ..errors import NotFoundError, UnauthorizedError, UnsupportedMediaTypeError
from .files import TTL, FileLink, link, send
from .table import API, LIST_PARAMS, Answer, Call, Ready, Route, note_failure, page_headers

SYNC_MEDIA: Final = ", ".join(wire.CONTENT_TYPES.values())
READ_AT_ONCE_BYTES: Final = 64 << 10
_SYNC_HEADERS: Final = {
    format: ((b"content-type", name.encode()), (b"vary", b"Accept-Encoding"))
    for format, name in wire.CONTENT_TYPES.items()
}


class SyncAnswer(msgspec.Struct, frozen=True):
    """The server's half of a sync; docs/wire.md has every field."""

    acked: dict[str, tuple[str, int] | None]
    desired: dict[str, object] | str
    downlink: list[object]
    refused: list[dict[str, object]]
    server_instance: str
    server_time: float
    next_sync_s: float


async def enrol(call: Call) -> Answer:
    """Make a device known."""
    answer, new = await call.run(fleet.enrol, call.server.db, call.body, call.now_s)
    return Answer(answer, 201 if new else 200)


async def sync(call: Call) -> Answer:
    """Settle a device's records and say what it should run."""
    content_type = call.header(b"content-type")
    format = wire.format_of(content_type)
    if format is None:
        raise UnsupportedMediaTypeError(
            f"a sync is sent as one of {', '.join(wire.CONTENT_TYPES[each] for each in wire.formats())}, "
            f"got {content_type[:100]!r}"
        )
    encoding = call.header(b"content-encoding").strip().lower() or "identity"
    if encoding not in ("gzip", "identity"):
        raise UnsupportedMediaTypeError(f"Content-Encoding is {encoding[:40]!r}, expected gzip or none")
    server, bytes_max = call.server, call.server.config.sync_bytes_max
    body = await call.raw_body(bytes_max)

    def read() -> wire.SyncRequest:
        plain = wire.expand(body, bytes_max) if encoding == "gzip" else body
        return wire.decode_request(plain, content_type)

    # What is small is read at once: handing it to a thread would take longer.
    is_small = encoding == "identity" and len(body) <= READ_AT_ONCE_BYTES
    request = read() if is_small else await call.run(read)
    assert call.principal is not None
    who = call.principal
    delivery = ingest.Delivery(who.id, request, call.now_s, server.config.next_sync_s, who.key_sha256)
    try:
        answer = await server.db.batched(ingest.batch_of(server.db.instance), delivery, len(body))
    except UnauthorizedError:
        note_failure(call)
        raise
    sent: tuple[tuple[bytes, bytes], ...] = _SYNC_HEADERS[format]
    data = wire.encode(answer, format)
    if len(data) >= wire.GZIP_BYTES_MIN and _takes_gzip(call.header(b"accept-encoding")):
        packed = await call.run(wire.compress, data)
        if packed is not None:
            data, sent = packed, (*sent, (b"content-encoding", b"gzip"))
    return Answer(response=Ready(data, sent))


def _takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding names gzip, and not with the weight 0 (RFC 9110, 12.5.3)."""
    for item in accepted.lower().split(","):
        name, _, weight = item.partition(";")
        if name.strip() == "gzip":
            return weight.replace(" ", "").rstrip("0.") != "q="
    return False


async def get_package(call: Call) -> Answer:
    """A package's file, whole or from a byte on."""
    sha256 = call.path("sha256")
    assert call.principal is not None
    if call.principal.kind == "device":
        await call.run(deployments.check_may_fetch, call.server.db, call.principal.id, sha256)
    await call.run(registry.check_package, call.server.db, sha256)
    return await send(call, sha256)


async def link_package(call: Call) -> Answer:
    """An address of a package in the object store."""
    sha256 = call.path("sha256")
    await call.run(registry.check_package, call.server.db, sha256)
    return await link(call, sha256)


async def get_ca(call: Call) -> Answer:
    """The authority that devices pin."""
    if call.server.config.ca_pem is None:
        raise NotFoundError("this server has no authority of its own to show")
    return Answer(response=Response(call.server.config.ca_pem, media_type="application/x-pem-file"))


async def list_devices(call: Call) -> Answer:
    """Devices by id."""
    page = await call.run(fleet.list_devices, call.server.db, call.text("cursor"), call.limit(), call.now_s)
    return Answer(page, headers=page_headers(call, page.next))


async def get_device(call: Call) -> Answer:
    """One device."""
    device = await call.run(fleet.get_device, call.server.db, call.path("id"), call.now_s)
    return Answer(device, headers={"ETag": fleet.etag(device.row_version)})


async def patch_device(call: Call) -> Answer:
    """Change a device's name or labels."""
    device = await call.run(
        fleet.patch_device,
        call.server.db,
        call.path("id"),
        call.body,
        call.request.headers.get("if-match"),
        call.who,
        call.now_s,
    )
    return Answer(device, headers={"ETag": fleet.etag(device.row_version)})


ROUTES: Final = (
    Route(
        "POST", f"{API}/devices/enrol", enrol, "Make a device known with a join token", "public",
        answer=fleet.Enrolled, body=fleet.EnrolRequest, problems=(403,),
        statuses={201: "the device is new", 200: "the same secret enrolled before with this token"},
    ),
    Route(
        "POST", f"{API}/sync", sync, "Deliver records, learn what to run", "device",
        answer=SyncAnswer, raw=SYNC_MEDIA, media=SYNC_MEDIA, problems=(415,), asks_again=True,
        headers=("Content-Encoding", "Accept-Encoding"),
        statuses={200: "settled and durable; in the format of the request"},
    ),
    Route(
        "GET", f"{API}/packages/{{sha256}}", get_package, "Fetch a package, with Range", "any",
        media="application/octet-stream", problems=(404, 416), headers=("Range", "If-Range", "If-None-Match"),
        statuses={200: "the whole file", 206: "the range", 304: "the ETag is known"},
    ),
    Route(
        "GET", f"{API}/packages/{{sha256}}/link", link_package, "An address of a package in the object store", "read",
        answer=FileLink, problems=(404, 409), query=(TTL,),
    ),
    Route(
        "GET", f"{API}/ca", get_ca, "The certificate authority that devices pin", "public",
        media="application/x-pem-file", problems=(404,), statuses={200: "PEM"},
    ),
    Route(
        "GET", f"{API}/devices", list_devices, "Devices", "read",
        answer=Page[fleet.DeviceView], query=LIST_PARAMS,
    ),
    Route("GET", f"{API}/devices/{{id}}", get_device, "One device", "read", answer=fleet.DeviceView, problems=(404,)),
    Route(
        "PATCH", f"{API}/devices/{{id}}", patch_device, "Change a device's name or labels", "devices:write",
        answer=fleet.DeviceView, body=fleet.DevicePatch, problems=(404, 412, 428), headers=("If-Match",),
    ),
)  # fmt: skip
