"""Tokens and the audit log."""

from __future__ import annotations

from typing import Final

from .. import audit, auth
from ..db import Page, decode_cursor, paged
from .table import API, LIST_PARAMS, Answer, Call, Route, page_headers

_NO_ID: Final = (1 << 63) - 1


async def create_token(call: Call) -> Answer:
    """Make a user token."""
    return Answer(await call.run(auth.create_token, call.server.db, call.body, call.who, call.now_s), 201)


async def list_audit(call: Call) -> Answer:
    """The audit log, newest first."""
    limit = call.limit()
    before = decode_cursor(call.text("cursor"), int, _NO_ID)
    entries = await call.run(audit.list_audit, call.server.db, before, limit + 1)
    page = paged(entries, limit, lambda entry: entry.id)
    return Answer(page, headers=page_headers(call, page.next))


ROUTES: Final = (
    Route(
        "POST", f"{API}/tokens", create_token, "Make a user token", "admin",
        answer=auth.NewToken, body=auth.TokenRequest, statuses={201: "the token, shown only now"},
    ),
    Route(
        "GET", f"{API}/audit", list_audit, "Who changed what, newest first", "admin",
        answer=Page[audit.AuditEntry], query=LIST_PARAMS,
    ),
)  # fmt: skip
