"""What machines ask: alive, ready, counters."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.responses import Response

from ..db import Connection
from .table import Answer, Call, Route


class Health(msgspec.Struct, frozen=True):
    """`ok`, or what is not."""

    status: str


async def healthz(call: Call) -> Answer:
    """The process is alive."""
    return Answer(Health("ok"))


async def readyz(call: Call) -> Answer:
    """The database answers, for reading and for writing, and so does the store of the blobs."""

    def job(connection: Connection) -> object:
        return connection.rows("SELECT 1 AS one")

    await call.run(call.server.db.read, job)
    await call.run(call.server.db.write, job)
    await call.run(call.server.store.check)
    return Answer(Health("ok"))


_COUNTS: Final = (
    (
        "tinysphere_jobs_failing",
        "gauge",
        "jobs whose last try failed; the log says why",
        "SELECT COUNT(*) AS n FROM job WHERE problem <> ''",
    ),
    ("tinysphere_devices", "gauge", "enrolled devices", "SELECT COUNT(*) AS n FROM device"),
    ("tinysphere_drift_events_total", "counter", "drift alarms received", "SELECT COUNT(*) AS n FROM drift_event"),
    (
        "tinysphere_records_total",
        "counter",
        "records settled",
        "SELECT CAST(COALESCE(SUM(seq), 0) AS BIGINT) AS n FROM watermark",
    ),
)


async def metrics(call: Call) -> Answer:
    """Counters in the text format of Prometheus; no device is named, so their number stays small."""

    def count(connection: Connection) -> str:
        lines = []
        for name, kind, about, sql in _COUNTS:
            value = connection.rows(sql)[0]["n"]
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"

    text = await call.run(call.server.db.read, count)
    lines = [
        text,
        "# HELP tinysphere_commits_total commits of the writer",
        "# TYPE tinysphere_commits_total counter",
        f"tinysphere_commits_total {call.server.db.commits}",
        "",
    ]
    return Answer(response=Response("\n".join(lines), media_type="text/plain; version=0.0.4"))


ROUTES: Final = (
    Route("GET", "/healthz", healthz, "The process is alive", "public", answer=Health),
    Route("GET", "/readyz", readyz, "The server can serve", "public", answer=Health, problems=(507,)),
    Route("GET", "/metrics", metrics, "Counters for Prometheus", "read", media="text/plain"),
)
