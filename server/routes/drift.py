"""Metrics and drift events."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from .. import drifthub, reports
from ..db import Page
from ..rollups import STEPS
from .table import API, LIST_PARAMS, Answer, Call, Param, Route, page_headers

POINTS_DEFAULT: Final = 500


async def query_metrics(call: Call) -> Answer:
    """Metrics over time, as JSON or as CSV."""
    metrics = await call.run(
        reports.query_metrics,
        call.server.db,
        reports.Question(
            device=call.text("device"),
            group=call.text("group"),
            model=call.text("model"),
            version=call.text("version"),
            since=call.number("since"),
            until=call.number("until"),
            step=call.text("step"),
            by=call.names("by"),
            aggregates=call.names("aggregate"),
            limit=call.limit(POINTS_DEFAULT, reports.POINTS_MAX),
        ),
    )
    if "text/csv" not in call.request.headers.get("accept", ""):
        return Answer(metrics)
    text = await call.run(reports.as_csv, metrics)
    headers = {"Content-Disposition": 'attachment; filename="metrics.csv"'}
    return Answer(response=Response(text, headers=headers, media_type="text/csv"))


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
        answer=reports.Metrics, media="application/json, text/csv", problems=(404, 422),
        query=(
            *_FILTERS,
            Param("group", about="a group's name"),
            Param("version", about="of the model"),
            Param("since", "number", "Unix seconds"),
            Param("until", "number", "Unix seconds, up to but without"),
            Param("step", about=f"{', '.join(STEPS)}; without one every interval of every device is a point"),
            Param("by", about=f"what a step keeps apart, with commas: {', '.join(reports.BY)}"),
            Param("aggregate", about=f"what to answer, with commas: {', '.join(reports.AGGREGATES)}"),
            Param("limit", "integer", "newest points"),
        ),
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
