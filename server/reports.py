"""What the metrics of a device's models were over time."""

from __future__ import annotations

import json
from typing import Final

import msgspec

from .db import Database, rows

POINTS_MAX: Final = 5000


class MetricsPoint(msgspec.Struct, frozen=True):
    """One summary interval; `at` falls back to the time of receipt when the device's time is unknown."""

    at: float
    windows: int
    confidence_mean: float | None
    confidence_p5: float | None
    confidence_p50: float | None
    latency_p50_us: float | None
    latency_p95_us: float | None
    latency_p99_us: float | None
    rss_bytes: int | None
    cpu_percent: float | None
    labels: dict[str, int]
    errors: int
    dropped_samples: int


class Metrics(msgspec.Struct, frozen=True):
    """Points, oldest first."""

    points: list[MetricsPoint]


def query_metrics(db: Database, device: str | None, model: str | None, since: float | None, limit: int) -> Metrics:
    """The newest `limit` points since a time, oldest first."""
    filters = [
        (condition, value)
        for condition, value in (
            ("device = ?", device),
            ("model = ?", model),
            ("COALESCE(at, received_at) >= ?", since),
        )
        if value is not None
    ]
    where = f" WHERE {' AND '.join(condition for condition, _ in filters)}" if filters else ""
    sql = f"SELECT *, COALESCE(at, received_at) AS time FROM summary{where} ORDER BY id DESC LIMIT ?"  # noqa: S608
    values = (*(value for _, value in filters), min(limit, POINTS_MAX))
    found = db.read(lambda connection: rows(connection, sql, values))
    names = [name for name in MetricsPoint.__struct_fields__ if name not in ("at", "labels")]
    points = [
        MetricsPoint(at=item["time"], labels=json.loads(item["labels"]), **{name: item[name] for name in names})
        for item in found
    ]
    return Metrics(sorted(points, key=lambda point: point.at))
