"""Groups, announced devices, keys, the end of a device, and the fleet as a table."""

from __future__ import annotations

from typing import Final

from starlette.responses import StreamingResponse

from .. import expected, fleet, groups, lifecycle
from ..db import Page
from ..errors import BadRequestError
from .table import API, LIST_PARAMS, Answer, Call, Route, created_once, page_headers

CSV: Final = "text/csv"


async def list_groups(call: Call) -> Answer:
    """Groups by name."""
    page = await call.run(groups.list_groups, call.server.db, call.text("cursor"), call.limit())
    return Answer(page, headers=page_headers(call, page.next))


async def get_group(call: Call) -> Answer:
    """One group."""
    view = await call.run(groups.get, call.server.db, call.path("name"))
    return Answer(view, headers={"ETag": groups.tag(view)})


async def put_group(call: Call) -> Answer:
    """Make a group, or give it another selector."""
    asked = call.path("name"), call.body, call.who, call.now_s, call.if_match
    view = await call.run(groups.put, call.server.db, *asked)
    return Answer(view, headers={"ETag": groups.tag(view)})


async def remove_group(call: Call) -> Answer:
    """Remove a group."""
    return Answer(await call.run(groups.remove, call.server.db, call.path("name"), call.who, call.now_s, call.if_match))


async def list_expected(call: Call) -> Answer:
    """Announced devices."""
    page = await call.run(expected.list_expected, call.server.db, call.text("cursor"), call.limit())
    return Answer(page, headers=page_headers(call, page.next))


async def announce(call: Call) -> Answer:
    """Announce a device."""
    return await created_once(call, "devices/expected", expected.announce_in)


async def withdraw(call: Call) -> Answer:
    """Take an announcement back."""
    return Answer(await call.run(expected.withdraw, call.server.db, call.path("serial"), call.who, call.now_s))


async def change_key(call: Call) -> Answer:
    """Let the asking device have another key."""
    assert call.principal is not None
    return Answer(await call.run(lifecycle.change_key, call.server.db, call.principal.id, call.body, call.now_s))


async def revoke(call: Call) -> Answer:
    """Refuse a device's key from now on."""
    asked = call.path("id"), call.who, call.now_s, call.if_match
    view = await call.run(lifecycle.revoke, call.server.db, *asked)
    return Answer(view, headers={"ETag": fleet.etag(view.row_version)})


async def retire(call: Call) -> Answer:
    """Take a device out of service."""
    asked = call.path("id"), call.who, call.now_s, call.if_match
    view = await call.run(lifecycle.retire, call.server.db, *asked)
    return Answer(view, headers={"ETag": fleet.etag(view.row_version)})


async def export(call: Call) -> Answer:
    """The fleet as a table."""
    lines = expected.export_csv(call.server.db, call.now_s)
    headers = {"Content-Disposition": 'attachment; filename="devices.csv"'}
    return Answer(response=StreamingResponse(lines, headers=headers, media_type=CSV))


async def load(call: Call) -> Answer:
    """Announce and change devices by a table."""
    raw = await call.raw_body(call.server.config.json_bytes_max)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequestError(f"the table is not UTF-8: {error}") from error
    call.body = text
    return await created_once(call, "devices/table", expected.import_in, status=200)


_WRITE: Final = "devices:write"
ROUTES: Final = (
    Route(
        "GET", f"{API}/groups", list_groups, "Groups of devices", "read",
        answer=Page[groups.GroupView], query=LIST_PARAMS,
    ),
    Route("GET", f"{API}/groups/{{name}}", get_group, "One group", "read", answer=groups.GroupView, problems=(404,)),
    Route(
        "PUT", f"{API}/groups/{{name}}", put_group, "Make a group, or give it another selector", _WRITE,
        answer=groups.GroupView, body=groups.GroupRequest, problems=(412, 428), headers=("If-Match",),
    ),
    Route(
        "DELETE", f"{API}/groups/{{name}}", remove_group, "Remove a group", _WRITE,
        answer=groups.GroupView, problems=(404, 412), headers=("If-Match",), statuses={200: "what it was"},
    ),
    Route(
        "GET", f"{API}/devices/expected", list_expected, "Devices that were announced by their serial number", "read",
        answer=Page[expected.ExpectedView], query=LIST_PARAMS,
    ),
    Route(
        "POST", f"{API}/devices/expected", announce, "Announce a device", _WRITE,
        answer=expected.ExpectedView, body=expected.ExpectedRequest, problems=(409,), headers=("Idempotency-Key",),
        statuses={201: "announced, or announced before with this key"},
    ),
    Route(
        "DELETE", f"{API}/devices/expected/{{serial}}", withdraw, "Take an announcement back", _WRITE,
        answer=expected.ExpectedView, problems=(404,), statuses={200: "what it was"},
    ),
    Route(
        "GET", f"{API}/devices/table", export, "Every device as CSV", "read", media=CSV,
        statuses={200: "columns " + ", ".join(expected.COLUMNS)},
    ),
    Route(
        "POST", f"{API}/devices/table", load, "Announce and change devices by CSV, all rows or none", _WRITE,
        answer=expected.Imported, raw=CSV, problems=(400, 409), headers=("Idempotency-Key",),
    ),
    Route(
        "POST", f"{API}/devices/key", change_key, "Have another key; both hold until it is used", "device",
        answer=lifecycle.KeyAnswer, body=lifecycle.KeyRequest,
    ),
    Route(
        "POST", f"{API}/devices/{{id}}/revoke", revoke, "Refuse a device's key from now on", _WRITE,
        answer=fleet.DeviceView, problems=(404, 412), headers=("If-Match",),
    ),
    Route(
        "POST", f"{API}/devices/{{id}}/retire", retire, "Take a device out of service", _WRITE,
        answer=fleet.DeviceView, problems=(404, 412), headers=("If-Match",),
    ),
)  # fmt: skip
