"""What devices have logged."""

from __future__ import annotations

from typing import Final

from .. import logs
from ..db import Page
from .table import API, LIST_PARAMS, Answer, Call, Param, Route, page_headers


async def list_logs(call: Call) -> Answer:
    """Lines, newest first."""
    question = logs.Question(
        call.text("device"), call.text("level"), call.text("logger"), call.number("since"), call.number("until")
    )
    page = await call.run(logs.list_logs, call.server.db, question, call.text("cursor"), call.limit())
    return Answer(page, headers=page_headers(call, page.next))


ROUTES: Final = (
    Route(
        "GET", f"{API}/logs", list_logs, "What devices have logged, newest first", "read",
        answer=Page[logs.LogView],
        query=(
            Param("device", about="a device's id"),
            Param("level", about=f"the least: {', '.join(logs.LEVELS)}"),
            Param("logger", about="a logger's name"),
            Param("since", "number", "received from this time on, Unix seconds"),
            Param("until", "number", "received before this time"),
            *LIST_PARAMS,
        ),
    ),
)  # fmt: skip
