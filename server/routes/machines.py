"""What machines ask: alive, ready, counters."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

import msgspec
from starlette.responses import Response

from .. import health
from ..db import Connection
from ..errors import BusyError, TinySphereError
from ..instruments import MEDIA, Labels, family
from .table import Answer, Call, Route

READY_S: Final = 1.0  # how long an answer stands: anybody may ask, and each look is a commit
COUNTED_S: Final = 15.0  # how long what the database counts stands
QUEUE_SHARE_MAX: Final = 0.9  # of the writer's queue: fuller, and requests will be refused soon


class Health(msgspec.Struct, frozen=True):
    """`ok`, and what was looked at."""

    status: str
    checks: dict[str, str] = {}


class _Remembered:
    """What the last look has found, for a short time."""

    def __init__(self) -> None:
        self.until_s = 0.0
        self.problem: TinySphereError | None = None
        self.lines: list[str] = []


async def healthz(call: Call) -> Answer:
    """The process is alive."""
    return Answer(Health("ok"))


async def readyz(call: Call) -> Answer:
    """The database answers, the writer gets on, and so does the store of the blobs."""
    if call.server.stopping.is_set():
        raise BusyError("the server is stopping; ask another one", retry_after_s=5)
    ready, now_s = _remembered(call, "ready"), time.monotonic()
    if now_s >= ready.until_s:
        ready.problem = await _look(call)
        ready.until_s = time.monotonic() + READY_S
    if ready.problem is not None:
        raise ready.problem
    return Answer(Health("ok", {"database": "ok", "writer": "ok", "store": "ok"}))


def _remembered(call: Call, what: str) -> _Remembered:
    return call.server.remembered.setdefault(what, _Remembered())  # type: ignore[return-value]


async def _look(call: Call) -> TinySphereError | None:
    db, queue_max = call.server.db, call.server.config.writer_queue_max

    def job(connection: Connection) -> object:
        return connection.rows("SELECT 1 AS one")

    try:
        await call.run(db.read, job)
        if db.waiting > QUEUE_SHARE_MAX * queue_max:
            raise BusyError(f"{db.waiting} of at most {queue_max} changes wait for the writer", retry_after_s=2)
        await call.run(db.write, job)
        await call.run(call.server.store.check)
    except TinySphereError as error:
        return error
    return None


def _database(connection: Connection, now_s: float) -> Iterable[str]:
    def number(sql: str) -> float:
        return float(connection.rows(sql)[0]["n"] or 0)

    failing = number("SELECT COUNT(*) AS n FROM job WHERE problem <> ''")
    yield from family("jobs_failing", "gauge", "jobs whose last try failed; the log says why", failing)
    outbox = number("SELECT COUNT(*) AS n FROM outbox")
    yield from family("outbox_waiting", "gauge", "things that MLflow is to be told", outbox)
    # Numbers that the database gives: unlike the rows, which retention removes, they only grow.
    alarms = number("SELECT MAX(id) AS n FROM drift_event")
    yield from family("drift_events_total", "counter", "drift alarms received", alarms)
    records = number("SELECT SUM(CAST(seq AS DOUBLE PRECISION)) AS n FROM watermark")
    yield from family("records_total", "counter", "records settled", records)
    sql = "SELECT COUNT(*) AS n FROM device_command WHERE state IN ('waiting', 'sent') AND expires_at > ?"
    waiting = connection.rows(sql, (now_s,))[0]["n"]
    yield from family("commands_waiting", "gauge", "commands that a device has not received yet", waiting)


async def metrics(call: Call) -> Answer:
    """Counters in the text format of Prometheus; no device is named, so their number stays small."""
    counted, now_s = _remembered(call, "counted"), time.monotonic()
    if now_s >= counted.until_s:
        db = call.server.db
        lines = await call.run(db.read, lambda connection: list(_database(connection, call.now_s)))
        fleet = await call.run(health.fleet_health, db, 1, call.now_s)
        lines += family("devices", "gauge", "enrolled devices that were not retired", fleet.devices)
        lines += family("devices_online", "gauge", "devices that sync as often as they should", fleet.online)
        checks: dict[Labels, float] = {(("check", check.check),): check.devices for check in fleet.checks}
        lines += family("devices_failing", "gauge", "devices that fail a check of GET /api/v1/health/fleet", checks)
        counted.lines, counted.until_s = lines, time.monotonic() + COUNTED_S
    return Answer(response=Response("\n".join([*counted.lines, *_process(call), ""]), media_type=MEDIA))


def _process(call: Call) -> Iterable[str]:
    server = call.server
    yield from family("commits_total", "counter", "commits of this process's writer", server.db.commits)
    yield from family("changes_total", "counter", "changes in them", server.db.jobs)
    yield from family("writer_queue", "gauge", "changes that wait for the writer", server.db.waiting)
    yield from family("writer_queue_max", "gauge", "so many may wait", server.config.writer_queue_max)
    yield from family("followers", "gauge", "open streams of GET /api/v1/events", server.followers.count)
    yield from server.requests.families()


ROUTES: Final = (
    Route("GET", "/healthz", healthz, "The process is alive", "public", answer=Health),
    Route("GET", "/readyz", readyz, "The server can serve", "public", answer=Health, problems=(507,)),
    Route("GET", "/metrics", metrics, "Counters for Prometheus", "read", media="text/plain"),
)
