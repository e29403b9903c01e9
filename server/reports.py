"""What the metrics of models were over time: as the devices summed them, or added up in steps over many of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from . import rollups
from .db import Connection, Database, Row, Value, row, rows
from .errors import BadRequestError, InvalidError, NotFoundError
from .groups import members
from .rollups import STEPS, Rollup

POINTS_MAX: Final = 5000
ROWS_MAX: Final = 200_000  # of rollups that one question may add up
BY: Final = ("device", "model", "version")
_DEVICES_A_QUERY: Final = 200
_ROWS_A_PAGE: Final = 1000


class MetricsPoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """Metrics of one interval, or of one step: `at` is where the step begins, or when the interval ended.

    What was not asked for is left out; null is what nobody has measured. Latencies are in microseconds, `cpu_percent`
    is of one core, `labels` are predictions by label.
    """

    at: float
    device: str | msgspec.UnsetType = msgspec.UNSET
    model: str | msgspec.UnsetType = msgspec.UNSET
    version: str | msgspec.UnsetType = msgspec.UNSET
    windows: int | msgspec.UnsetType = msgspec.UNSET
    errors: int | msgspec.UnsetType = msgspec.UNSET
    dropped_samples: int | msgspec.UnsetType = msgspec.UNSET
    confidence_mean: float | msgspec.UnsetType | None = msgspec.UNSET
    confidence_std: float | msgspec.UnsetType | None = msgspec.UNSET
    confidence_min: float | msgspec.UnsetType | None = msgspec.UNSET
    confidence_p5: float | msgspec.UnsetType | None = msgspec.UNSET
    confidence_p50: float | msgspec.UnsetType | None = msgspec.UNSET
    latency_mean_us: float | msgspec.UnsetType | None = msgspec.UNSET
    latency_p50_us: float | msgspec.UnsetType | None = msgspec.UNSET
    latency_p95_us: float | msgspec.UnsetType | None = msgspec.UNSET
    latency_p99_us: float | msgspec.UnsetType | None = msgspec.UNSET
    latency_max_us: float | msgspec.UnsetType | None = msgspec.UNSET
    rss_bytes: int | msgspec.UnsetType | None = msgspec.UNSET
    cpu_percent: float | msgspec.UnsetType | None = msgspec.UNSET
    labels: dict[str, int] | msgspec.UnsetType = msgspec.UNSET


AGGREGATES: Final = tuple(name for name in MetricsPoint.__struct_fields__ if name not in ("at", *BY))


class Metrics(msgspec.Struct, frozen=True):
    """Points, oldest first; `step_s` is null for the devices' own intervals."""

    points: list[MetricsPoint]
    step_s: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """Which metrics are asked for.

    Attributes:
        device, group, model, version: whose; None for all.
        since, until: Unix seconds, from and up to but without.
        step: a key of `STEPS`, or None for the devices' own intervals.
        by: which of `BY` to keep apart, with a step.
        aggregates: which of `AGGREGATES` to answer; none means all.
        limit: newest points to answer.
    """

    device: str | None = None
    group: str | None = None
    model: str | None = None
    version: str | None = None
    since: float | None = None
    until: float | None = None
    step: str | None = None
    by: tuple[str, ...] = ()
    aggregates: tuple[str, ...] = ()
    limit: int = 500


def _check(question: Question) -> None:
    if question.step is not None and question.step not in STEPS:
        raise BadRequestError(f"the query's step is {question.step!r:.40}; expected one of {', '.join(STEPS)}")
    for name, values, known in (("by", question.by, BY), ("aggregate", question.aggregates, AGGREGATES)):
        for value in values:
            if value not in known:
                raise BadRequestError(f"the query's {name} names {value!r:.40}; expected some of {', '.join(known)}")
    if question.by and question.step is None:
        raise BadRequestError("the query's by needs a step: without one every interval of every device is a point")


def query_metrics(db: Database, question: Question) -> Metrics:
    """The newest `limit` points, oldest first.

    Raises:
        BadRequestError: a step, a grouping or an aggregate that there is not.
        NotFoundError: there is no such group.
        InvalidError: too many rows would have to be added up.
    """
    _check(question)

    def job(connection: Connection) -> Metrics:
        if question.step is None:
            return Metrics(_intervals(connection, question, devices_of(connection, question)))
        return Metrics(_steps(connection, question), STEPS[question.step])

    return db.read(job)


def devices_of(connection: Connection, question: Question) -> list[str] | None:
    """The devices that are meant, or None for all."""
    if question.group is None:
        return None if question.device is None else [question.device]
    found = row(connection, "SELECT selector FROM device_group WHERE name = ?", (question.group,))
    if found is None:
        raise NotFoundError(f"there is no group {question.group!r:.70}; see `tinysphere groups`")
    meant = members(connection, found["selector"])
    return meant if question.device is None else [device for device in meant if device == question.device]


def _filters(question: Question, time: str) -> tuple[list[str], list[Value]]:
    found = [
        (condition, value)
        for condition, value in (
            ("model = ?", question.model),
            ("version = ?", question.version),
            (f"{time} >= ?", question.since),
            (f"{time} < ?", question.until),
        )
        if value is not None
    ]
    return [condition for condition, _ in found], [value for _, value in found]


def _conditions(question: Question, devices: list[str] | None, time: str) -> Iterator[tuple[str, list[Value]]]:
    """The filters of a question, for as many devices at a time as a statement takes."""
    conditions, values = _filters(question, time)
    if devices is None:
        yield "".join(f" AND {condition}" for condition in conditions), values
        return
    for start in range(0, len(devices), _DEVICES_A_QUERY):
        piece = devices[start : start + _DEVICES_A_QUERY]
        named = [*conditions, f"device IN ({', '.join('?' * len(piece))})"]
        yield "".join(f" AND {condition}" for condition in named), [*values, *piece]


def _intervals(connection: Connection, question: Question, devices: list[str] | None) -> list[MetricsPoint]:
    time = "COALESCE(at, received_at)"
    limit = min(question.limit, POINTS_MAX)
    found: list[Row] = []
    for where, values in _conditions(question, devices, time):
        sql = f"SELECT *, {time} AS time FROM summary WHERE 1 = 1{where} ORDER BY id DESC LIMIT ?"  # noqa: S608
        found += rows(connection, sql, (*values, limit))
    newest = sorted(found, key=lambda item: item["id"], reverse=True)[:limit]
    wanted = [name for name in question.aggregates or AGGREGATES if not newest or name in newest[0]]
    points = [
        MetricsPoint(
            item["time"],
            item["device"],
            item["model"],
            item["version"],
            **{name: json.loads(item[name]) if name == "labels" else item[name] for name in wanted},
        )
        for item in newest
    ]
    return sorted(points, key=lambda point: point.at)


def _steps(connection: Connection, question: Question) -> list[MetricsPoint]:
    found: dict[tuple[Any, ...], Rollup] = {}
    for count, item in enumerate(sums(connection, question)):
        if count == ROWS_MAX:
            raise InvalidError(
                f"more than {ROWS_MAX} rows would have to be added up: ask for a longer step, a shorter time or fewer "
                "devices"
            )
        key = (item["at"], *(item[name] for name in question.by))
        if (known := found.get(key)) is None:
            found[key] = rollups.read(item)
        else:
            known.add(rollups.read(item))
    newest = sorted(found, reverse=True)[: min(question.limit, POINTS_MAX)]
    return [
        MetricsPoint(
            key[0],
            **dict(zip(question.by, key[1:], strict=True)),
            **measured(found[key], question.aggregates or AGGREGATES),
        )
        for key in reversed(newest)
    ]


def conditions(connection: Connection, question: Question, time: str) -> Iterator[tuple[str, list[Value]]]:
    """The filters of a question as SQL that begins with AND, for as many devices at a time as a statement takes."""
    yield from _conditions(question, devices_of(connection, question), time)


def sums(connection: Connection, question: Question) -> Iterator[Row]:
    """The sums by device and step of a question, newest first, never many in memory."""
    order = ("at", "device", "model", "version")
    assert question.step is not None
    for where, values in conditions(connection, question, "at"):
        after: list[Value] = []
        while True:
            behind = f" AND ({', '.join(order)}) < (?, ?, ?, ?)" if after else ""
            sql = (
                f"SELECT * FROM rollup WHERE step = ?{where}{behind}"  # noqa: S608 (constants)
                f" ORDER BY {', '.join(f'{name} DESC' for name in order)} LIMIT {_ROWS_A_PAGE}"
            )
            page = rows(connection, sql, (STEPS[question.step], *values, *after))
            yield from page
            if len(page) < _ROWS_A_PAGE:
                break
            after = [page[-1][name] for name in order]


def measured(rollup: Rollup, wanted: Sequence[str] = AGGREGATES) -> dict[str, Any]:
    """What a sum says, by the names of `AGGREGATES`."""
    latency, confidence = rollup.latency_us, rollup.confidence
    values: dict[str, Callable[[], object]] = {
        "windows": lambda: rollup.windows,
        "errors": lambda: rollup.errors,
        "dropped_samples": lambda: rollup.dropped_samples,
        "confidence_mean": lambda: confidence.mean,
        "confidence_std": lambda: confidence.std,
        "confidence_min": lambda: confidence.min,
        "confidence_p5": lambda: confidence.quantile(0.05),
        "confidence_p50": lambda: confidence.quantile(0.5),
        "latency_mean_us": lambda: latency.mean,
        "latency_p50_us": lambda: latency.quantile(0.5),
        "latency_p95_us": lambda: latency.quantile(0.95),
        "latency_p99_us": lambda: latency.quantile(0.99),
        "latency_max_us": lambda: latency.max,
        "rss_bytes": lambda: rollup.rss_bytes,
        "cpu_percent": lambda: rollup.cpu_percent,
        "labels": lambda: rollup.labels,
    }
    return {name: values[name]() for name in wanted}


def as_csv(metrics: Metrics) -> str:
    """A line a point; labels are JSON, what was not measured is empty. Columns that no point has are left out."""
    names = [
        name
        for name in MetricsPoint.__struct_fields__
        if any(getattr(point, name) is not msgspec.UNSET for point in metrics.points)
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names or ["at"])
    for point in metrics.points:
        writer.writerow([csv_cell(getattr(point, name)) for name in names])
    return text.getvalue()


def csv_cell(value: object) -> object:
    """A value as a cell: tables as JSON, nothing as an empty one."""
    if value is None or value is msgspec.UNSET:
        return ""
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    # A spreadsheet takes what begins like this for a formula; names of devices' making are not to be run.
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")) else value
