"""Tokens and the audit log."""

from __future__ import annotations

from typing import Final

from .. import audit, auth, joins
from ..db import Page, decode_cursor, paged
from .table import API, LIST_PARAMS, Answer, Call, Route, page_headers

_NO_ID: Final = (1 << 63) - 1


async def create_token(call: Call) -> Answer:
    """Make a user token."""
    key = call.request.headers.get("idempotency-key")
    return Answer(await call.run(auth.create_token, call.server.db, call.body, call.who, call.now_s, key), 201)


async def list_tokens(call: Call) -> Answer:
    """User tokens."""
    page = await call.run(auth.page_tokens, call.server.db, call.text("cursor"), call.limit())
    return Answer(page, headers=page_headers(call, page.next))


async def revoke_token(call: Call) -> Answer:
    """End a user token."""
    db, token_id = call.server.db, call.path("id")
    await call.run(auth.revoke_token, db, token_id, call.who, call.now_s)
    return Answer(await call.run(auth.get_token, db, token_id))


async def create_join(call: Call) -> Answer:
    """Make a join string."""
    key, ca_pem = call.request.headers.get("idempotency-key"), call.server.config.ca_pem
    made = await call.run(joins.make, call.server.db, call.body, ca_pem, call.who, call.now_s, key)
    return Answer(made, 201)


async def list_joins(call: Call) -> Answer:
    """Join tokens."""
    page = await call.run(joins.list_joins, call.server.db, call.text("cursor"), call.limit())
    return Answer(page, headers=page_headers(call, page.next))


async def revoke_join(call: Call) -> Answer:
    """End a join token."""
    return Answer(await call.run(joins.revoke, call.server.db, call.path("id"), call.who, call.now_s))


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
        answer=auth.NewToken, body=auth.TokenRequest, headers=("Idempotency-Key",), problems=(409,),
        statuses={201: "the token, shown only now"},
    ),
    Route(
        "GET", f"{API}/tokens", list_tokens, "User tokens, without their secrets", "admin",
        answer=Page[auth.TokenView], query=LIST_PARAMS,
    ),
    Route(
        "DELETE", f"{API}/tokens/{{id}}", revoke_token, "End a user token", "admin",
        answer=auth.TokenView, problems=(404,),
    ),
    Route(
        "POST", f"{API}/join-tokens", create_join, "Make a join string for devices", "admin",
        answer=joins.NewJoin, body=joins.JoinRequest, headers=("Idempotency-Key",), problems=(409,),
        statuses={201: "the join string, shown only now"},
    ),
    Route(
        "GET", f"{API}/join-tokens", list_joins, "Join tokens, without their secrets", "admin",
        answer=Page[joins.JoinView], query=LIST_PARAMS,
    ),
    Route(
        "DELETE", f"{API}/join-tokens/{{id}}", revoke_join, "End a join token; those that enrolled stay", "admin",
        answer=joins.JoinView, problems=(404,),
    ),
    Route(
        "GET", f"{API}/audit", list_audit, "Who changed what, newest first", "admin",
        answer=Page[audit.AuditEntry], query=LIST_PARAMS,
    ),
)  # fmt: skip
