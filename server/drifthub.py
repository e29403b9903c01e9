"""Drift events of the whole fleet, with their evidence."""

from __future__ import annotations

import json
from typing import Final

import msgspec

from .db import Database, Page, Row, Value, decode_cursor, paged, row, rows
from .errors import NotFoundError

_NO_ID: Final = (1 << 63) - 1
_SELECT: Final = (
    "SELECT e.*, COALESCE(d.name, '') AS device_name FROM drift_event e LEFT JOIN device d ON d.id = e.device"
)


class HistogramView(msgspec.Struct, frozen=True):
    """Reference and current distribution over the same bins; `edges` for numbers, `labels` for categories."""

    reference: list[float]
    current: list[float]
    edges: list[float]
    labels: list[str]


class DriftEventView(msgspec.Struct, frozen=True):
    """An alarm as it arrived. `at` is on the server's clock; unknown when that boot was never anchored. `board` is the
    uid of the board behind the device that it is of, or empty."""

    id: int
    device_id: str
    device_name: str
    model: str
    version: str
    monitor: str
    detector: str
    signal: str
    statistic: float | None
    threshold: float | None
    window: int
    suspect: int
    at: float | None
    at_known: bool
    received_at: float
    histogram: HistogramView | None
    p_value: float | None = None
    arl0: float | None = None
    monitors: int = 1
    board: str = ""


def _view(found: Row) -> DriftEventView:
    names = (name for name in DriftEventView.__struct_fields__ if name not in ("device_id", "at_known", "histogram"))
    histogram = json.loads(found["histogram"]) if found["histogram"] else None
    return DriftEventView(
        **{name: found[name] for name in names},
        device_id=found["device"],
        at_known=found["at"] is not None,
        histogram=HistogramView(**histogram) if histogram else None,
    )


def list_events(
    db: Database, device: str | None, model: str | None, cursor: str | None, limit: int
) -> Page[DriftEventView]:
    """Drift events, newest first, of one device or model if named.

    Raises:
        BadRequestError: the cursor is none of this list.
    """
    where: list[str] = ["e.id < ?"]
    bound: list[Value] = [decode_cursor(cursor, int, _NO_ID)]
    for condition, value in (("e.device = ?", device), ("e.model = ?", model)):
        if value:
            where.append(condition)
            bound.append(value)
    bound.append(limit + 1)
    sql = f"{_SELECT} WHERE {' AND '.join(where)} ORDER BY e.id DESC LIMIT ?"
    found = db.read(lambda connection: rows(connection, sql, bound))
    return paged([_view(item) for item in found], limit, lambda event: event.id)


def get_event(db: Database, event_id: int) -> DriftEventView:
    """One drift event.

    Raises:
        NotFoundError: there is none of this number.
    """
    found = db.read(lambda connection: row(connection, f"{_SELECT} WHERE e.id = ?", (event_id,)))
    if found is None:
        raise NotFoundError(f"there is no drift event {event_id}; see `tinysphere events`")
    return _view(found)
