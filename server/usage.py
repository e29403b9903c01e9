"""What the fleet was used for: predictions by day, model, version and label, from the sums of each day.

Days are those of UTC. A label is what a model has said; windows on which it failed are `errors` and no predictions.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from . import reports
from .db import Connection, Database
from .errors import BadRequestError, InvalidError
from .rollups import COUNT_MAX

BY: Final = ("day", "model", "version", "label")
DAYS_DEFAULT: Final = 30
ITEMS_MAX: Final = 50_000  # of one answer
_DAY_S: Final = 86_400


class UsageItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was counted together; what `by` does not name is left out, and so are devices and errors of one label.

    `day` is such as 2026-11-28, in UTC.
    """

    predictions: int
    day: str | msgspec.UnsetType = msgspec.UNSET
    model: str | msgspec.UnsetType = msgspec.UNSET
    version: str | msgspec.UnsetType = msgspec.UNSET
    label: str | msgspec.UnsetType = msgspec.UNSET
    errors: int | msgspec.UnsetType = msgspec.UNSET
    devices: int | msgspec.UnsetType = msgspec.UNSET


class Usage(msgspec.Struct, frozen=True):
    """Usage from one day to another, both included, with its total."""

    since: str
    until: str
    predictions: int
    errors: int
    items: list[UsageItem]


@dataclass(frozen=True, slots=True)
class Question:
    """Whose usage is asked for, and what to keep apart.

    Attributes:
        device, group, model, version: whose; None for all.
        since, until: Unix seconds; the days that they lie in are counted whole.
        by: which of `BY`.
    """

    device: str | None = None
    group: str | None = None
    model: str | None = None
    version: str | None = None
    since: float | None = None
    until: float | None = None
    by: tuple[str, ...] = BY


def day_name(unix_s: float) -> str:
    """A day in UTC.

    Raises:
        BadRequestError: no calendar has it.
    """
    try:
        return time.strftime("%Y-%m-%d", time.gmtime(unix_s))
    except (OverflowError, ValueError, OSError):
        raise BadRequestError(f"{unix_s:g} is no Unix time of a day that has a name") from None


def query_usage(db: Database, question: Question, now_s: float) -> Usage:
    """Count predictions.

    Raises:
        BadRequestError: `by` names what there is not, or the time ends before it begins.
        NotFoundError: there is no such group.
        InvalidError: too much would have to be answered.
    """
    for name in question.by:
        if name not in BY:
            raise BadRequestError(f"the query's by names {name!r:.40}; expected some of {', '.join(BY)}")
    until = now_s if question.until is None else question.until
    since = until - (DAYS_DEFAULT - 1) * _DAY_S if question.since is None else question.since
    first, last = (int(time_s // _DAY_S) * _DAY_S for time_s in (since, until))
    if last < first:
        raise BadRequestError("the query's until lies before its since")
    names = day_name(first), day_name(last)
    predictions, errors, items = db.read(lambda connection: _count(connection, question, first, last))
    return Usage(*names, predictions, errors, items)


# Each label of a day's sum as a row of its own.
_LABELS: Final[Mapping[str, str]] = {
    "sqlite": ", json_each(rollup.labels) AS said",
    "postgresql": " CROSS JOIN LATERAL json_each_text(CAST(rollup.labels AS json)) AS said(key, value)",
}
_COLUMNS: Final[Mapping[str, str]] = {"day": "at", "model": "model", "version": "version", "label": "said.key"}


def _sum(column: str) -> str:
    """A sum that no device's absurd numbers can make overflow."""
    return f"SUM(CAST({column} AS DOUBLE PRECISION))"


def _whole(number: float | None) -> int:
    return min(int(number or 0), COUNT_MAX)


def _count(connection: Connection, question: Question, first: int, last: int) -> tuple[int, int, list[UsageItem]]:
    """Predictions, errors, and what is kept apart, counted by the database."""
    asked = reports.Question(
        device=question.device,
        group=question.group,
        model=question.model,
        version=question.version,
        since=first,
        until=last + 1,
        step="day",
    )
    sums: dict[tuple[Any, ...], list[float]] = {}
    windows = errors = 0.0
    for where, values in reports.conditions(connection, asked, "at"):  # as many devices at a time as a query takes
        total = f"SELECT {_sum('windows')} AS windows, {_sum('errors')} AS errors FROM rollup WHERE step = 86400{where}"  # noqa: S608
        found = connection.rows(total, values)[0]
        windows, errors = windows + (found["windows"] or 0), errors + (found["errors"] or 0)
        for item in connection.rows(_grouped(connection.kind, question.by, where), (*values, ITEMS_MAX + 1)):
            known = sums.setdefault(tuple(item[f"part{number}"] for number in range(len(question.by))), [0.0, 0.0, 0.0])
            for index, name in enumerate(("predictions", "errors", "devices")):
                known[index] += item[name] or 0
        if len(sums) > ITEMS_MAX:
            raise InvalidError(f"more than {ITEMS_MAX} items: ask for fewer days or models, or by less")
    is_whole = "label" not in question.by
    items = [
        _item(question.by, key, *sums[key]) for key in sorted(sums) if sums[key][0] or (is_whole and any(sums[key]))
    ]
    return _whole(windows), _whole(errors), items


def _grouped(kind: str, by: tuple[str, ...], where: str) -> str:
    is_by_label = "label" in by
    parts = [_COLUMNS[name] for name in by]
    counted = _sum("said.value" if is_by_label else "windows")
    named = "".join(f"{part} AS part{number}, " for number, part in enumerate(parts))
    grouped = f" GROUP BY {', '.join(parts)}" if parts else ""
    return (
        f"SELECT {named}{counted} AS predictions, {_sum('errors')} AS errors, COUNT(DISTINCT device) AS devices"  # noqa: S608
        f" FROM rollup{_LABELS[kind] if is_by_label else ''} WHERE step = 86400{where}{grouped} LIMIT ?"
    )


def _item(by: tuple[str, ...], key: tuple[Any, ...], predictions: float, errors: float, devices: float) -> UsageItem:
    named: dict[str, Any] = {
        name: day_name(part) if name == "day" else part for name, part in zip(by, key, strict=True)
    }
    if "label" not in by:
        named |= {"errors": _whole(errors), "devices": _whole(devices)}
    return UsageItem(_whole(predictions), **named)


def as_csv(usage: Usage) -> str:
    """A line an item; names of devices' making are made safe for spreadsheets."""
    names = [
        name
        for name in (*BY, "predictions", "errors", "devices")
        if any(getattr(item, name) is not msgspec.UNSET for item in usage.items)
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names or ["predictions"])
    for item in usage.items:
        writer.writerow([reports.csv_cell(getattr(item, name)) for name in names])
    return text.getvalue()
