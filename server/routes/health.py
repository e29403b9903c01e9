"""Usage, health and performance."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from .. import health, performance, usage
from .table import API, Answer, Call, Param, Route

NAMED_DEFAULT: Final = 20


async def get_usage(call: Call) -> Answer:
    """Predictions counted, as JSON or as CSV."""
    question = usage.Question(
        device=call.text("device"),
        group=call.text("group"),
        model=call.text("model"),
        version=call.text("version"),
        since=call.number("since"),
        until=call.number("until"),
        by=call.names("by") or usage.BY,
    )
    found = await call.run(usage.query_usage, call.server.db, question, call.now_s)
    if "text/csv" not in call.request.headers.get("accept", ""):
        return Answer(found)
    text = await call.run(usage.as_csv, found)
    headers = {"Content-Disposition": 'attachment; filename="usage.csv"'}
    return Answer(response=Response(text, headers=headers, media_type="text/csv"))


async def get_fleet_health(call: Call) -> Answer:
    """The fleet's health."""
    return Answer(await call.run(health.fleet_health, call.server.db, call.limit(NAMED_DEFAULT), call.now_s))


async def get_device_health(call: Call) -> Answer:
    """A device's health."""
    return Answer(await call.run(health.device_health, call.server.db, call.path("id"), call.now_s))


async def get_performance(call: Call) -> Answer:
    """The versions of a model side by side."""
    asked = call.text("group"), call.number("since"), call.number("until")
    return Answer(await call.run(performance.model_performance, call.server.db, call.path("name"), *asked, call.now_s))


_TIMES: Final = (
    Param("since", "number", "Unix seconds"),
    Param("until", "number", "Unix seconds"),
)
ROUTES: Final = (
    Route(
        "GET", f"{API}/usage", get_usage, "Predictions by day, model, version and label", "read",
        answer=usage.Usage, media="application/json, text/csv", problems=(404, 422),
        query=(
            Param("device", about="a device's id"),
            Param("group", about="a group's name"),
            Param("model", about="a model's name"),
            Param("version", about="of the model"),
            *_TIMES,
            Param("by", about=f"what to keep apart, with commas: {', '.join(usage.BY)}; all of them unless given"),
        ),
    ),
    Route(
        "GET", f"{API}/health/fleet", get_fleet_health, "What is wrong in the fleet, and with which devices", "read",
        answer=health.FleetHealth, query=(Param("limit", "integer", "devices named of each check"),),
    ),
    Route(
        "GET", f"{API}/health/devices/{{id}}", get_device_health, "What is wrong with a device", "read",
        answer=health.DeviceHealth, problems=(404,),
    ),
    Route(
        "GET", f"{API}/models/{{name}}/performance", get_performance, "How a model's versions do in the field", "read",
        answer=performance.ModelPerformance, problems=(404, 422),
        query=(Param("group", about="a group's name"), *_TIMES),
    ),
)  # fmt: skip
