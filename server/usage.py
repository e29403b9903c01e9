"""What the fleet was used for: predictions by day, model, version and label, from the sums of each day.

Days are those of UTC. A label is what a model has said; windows on which it failed are `errors` and no predictions.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from . import reports
from .db import Connection, Database, Row
from .errors import BadRequestError, InvalidError

BY: Final = ("day", "model", "version", "label")
DAYS_DEFAULT: Final = 30
ROWS_MAX: Final = 200_000  # of daily sums that one question may add up
ITEMS_MAX: Final = 50_000  # of one answer
_DAY_S: Final = 86_400
_PAGE_ROWS: Final = 2000


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
        InvalidError: too much would have to be added up or answered.
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
    counted = db.read(lambda connection: _count(connection, question, first, last))
    return Usage(*names, counted.predictions, counted.errors, counted.items(question.by))


class _Counted:
    """Sums by what is kept apart."""

    def __init__(self) -> None:
        self.predictions = self.errors = 0
        self._sums: dict[tuple[Any, ...], list[int]] = {}
        self._devices: dict[tuple[Any, ...], set[str]] = {}

    def add(self, item: Row, by: tuple[str, ...]) -> None:
        self.predictions += item["windows"]
        self.errors += item["errors"]
        if "label" in by:
            for label, count in json.loads(item["labels"]).items():
                if count:
                    self._sum(tuple(label if name == "label" else _part(item, name) for name in by))[0] += count
            return
        key = tuple(_part(item, name) for name in by)
        sums = self._sum(key)
        sums[0] += item["windows"]
        sums[1] += item["errors"]
        self._devices.setdefault(key, set()).add(item["device"])

    def _sum(self, key: tuple[Any, ...]) -> list[int]:
        if (known := self._sums.get(key)) is None:
            if len(self._sums) >= ITEMS_MAX:
                raise InvalidError(f"more than {ITEMS_MAX} items: ask for fewer days or models, or by less")
            known = self._sums[key] = [0, 0]
        return known

    def items(self, by: tuple[str, ...]) -> list[UsageItem]:
        found = []
        for key in sorted(self._sums):
            named = dict(zip(by, key, strict=True))
            if "label" not in by:
                named |= {"errors": self._sums[key][1], "devices": len(self._devices[key])}
            found.append(UsageItem(self._sums[key][0], **named))
        return found


def _part(item: Row, name: str) -> str:
    return day_name(item["at"]) if name == "day" else str(item[name])


def _count(connection: Connection, question: Question, first: int, last: int) -> _Counted:
    counted = _Counted()
    for number, item in enumerate(_days(connection, question, first, last)):
        if number == ROWS_MAX:
            raise InvalidError(
                f"more than {ROWS_MAX} daily sums would have to be added up: ask for fewer days, a model or a group"
            )
        counted.add(item, question.by)
    return counted


def _days(connection: Connection, question: Question, first: int, last: int) -> Iterator[Row]:
    asked = reports.Question(
        device=question.device,
        group=question.group,
        model=question.model,
        version=question.version,
        since=first,
        until=last + 1,
        step="day",
    )
    columns = "at, device, model, version, windows, errors, labels"
    yield from reports.sums(connection, asked, columns, _PAGE_ROWS)


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
