"""Metrics and drift events."""

from __future__ import annotations

from typing import Final

from .. import drifthub, reports
from ..db import Page
from .table import API, LIST_PARAMS, Answer, Call, Param, Route, page_headers

POINTS_DEFAULT: Final = 500


async def query_metrics(call: Call) -> Answer:
    """Metrics over time."""
    limit = call.limit(POINTS_DEFAULT, reports.POINTS_MAX)
    return Answer(
        await call.run(
            reports.query_metrics, call.server.db, call.text("device"), call.text("model"), call.number("since"), limit
        )
    )


async def list_events(call: Call) -> Answer:
    """Drift events, newest first."""
    page = await call.run(
        drifthub.list_events,
        call.server.db,
        call.text("device"),
        call.text("model"),
        call.text("cursor"),
        call.limit(),
    )
    return Answer(page, headers=page_headers(call, page.next))


async def get_event(call: Call) -> Answer:
    """One drift event with its evidence."""
    return Answer(await call.run(drifthub.get_event, call.server.db, call.number_in_path("id")))


_FILTERS: Final = (Param("device", about="a device's id"), Param("model", about="a model's name"))
ROUTES: Final = (
    Route(
        "GET", f"{API}/metrics/query", query_metrics, "Metrics over time, oldest first", "read",
        answer=reports.Metrics,
        query=(*_FILTERS, Param("since", "number", "Unix seconds"), Param("limit", "integer", "newest points")),
    ),
    Route(
        "GET", f"{API}/drift/events", list_events, "Drift events, newest first", "read",
        answer=Page[drifthub.DriftEventView], query=(*_FILTERS, *LIST_PARAMS),
    ),
    Route(
        "GET", f"{API}/drift/events/{{id}}", get_event, "One drift event with its evidence", "read",
        answer=drifthub.DriftEventView, problems=(404,),
    ),
)  # fmt: skip
