"""How the versions of a model do in the field: each added up over a time and over all devices, side by side.

How often a version was right is known of predictions whose input was kept and whose true label came: see judgements.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from . import reports, rollups
from .db import Connection, Database, row, rows
from .errors import BadRequestError, InvalidError, NotFoundError
from .judgements import Judged, judged
from .rollups import Rollup

DAYS_DEFAULT: Final = 7
DAY_S: Final = 86_400
HOURS_MAX_S: Final = 3 * DAY_S  # a longer time is added up by days
LABELS_SHOWN_MAX: Final = 200


class VersionPerformance(msgspec.Struct, frozen=True):
    """A version over the time; latencies in microseconds, null where nothing was measured.

    `devices` have said something of it in the time, `running` have said nothing of a later one since.
    `drift_events` are the alarms that were received in the time. `labels` are the most frequent predictions.
    `accuracy` is of the `labelled` predictions: those whose input was kept and whose true label came.
    """

    version: str
    devices: int
    running: int
    windows: int
    errors: int
    dropped_samples: int
    drift_events: int
    latency_mean_us: float | None
    latency_p50_us: float | None
    latency_p95_us: float | None
    latency_p99_us: float | None
    latency_max_us: float | None
    confidence_mean: float | None
    confidence_std: float | None
    confidence_p5: float | None
    confidence_p50: float | None
    rss_bytes: int | None
    cpu_percent: float | None
    labels: dict[str, int]
    labelled: int
    accuracy: float | None


class ModelPerformance(msgspec.Struct, frozen=True):
    """Every version that was heard of, the most used first; the times are those that were added up, in Unix seconds."""

    model: str
    since: float
    until: float
    versions: list[VersionPerformance]


def model_performance(
    db: Database, model: str, group: str | None, since: float | None, until: float | None, now_s: float
) -> ModelPerformance:
    """Add up a model's metrics by version; steps that lie partly in the time count whole.

    Raises:
        NotFoundError: there is no such model or group.
        BadRequestError: the time ends before it begins.
        InvalidError: too much would have to be added up.
    """
    end = now_s if until is None else until
    begin = end - DAYS_DEFAULT * DAY_S if since is None else since
    if end < begin:
        raise BadRequestError("the query's until lies before its since")
    step = "hour" if end - begin <= HOURS_MAX_S else "day"
    begin = begin // rollups.STEPS[step] * rollups.STEPS[step]
    question = reports.Question(model=model, group=group, since=begin, until=end, step=step)

    def job(connection: Connection) -> ModelPerformance:
        found, devices = _added(connection, question)
        if not found and row(connection, "SELECT 1 FROM model_version WHERE model = ? LIMIT 1", (model,)) is None:
            raise NotFoundError(f"there is no model {model!r:.70}, and no device has run one; see `tinysphere models`")
        alarms = _alarms(connection, model, begin, end)
        sql = "SELECT version, COUNT(*) AS n FROM latest WHERE model = ? GROUP BY version"
        running = {item["version"]: item["n"] for item in rows(connection, sql, (model,))}
        meant = reports.devices_of(connection, question)
        right = judged(connection, model, begin, math.nextafter(end, math.inf), meant)
        none = Judged(0, 0)
        versions = [
            _view(
                version,
                rollup,
                len(devices[version]),
                running.get(version, 0),
                alarms.get(version, 0),
                right.get(version, none),
            )
            for version, rollup in found.items()
        ]
        versions.sort(key=lambda item: (-item.windows, item.version))
        return ModelPerformance(model, begin, end, versions)

    return db.read(job)


def _added(connection: Connection, question: reports.Question) -> tuple[dict[str, Rollup], dict[str, set[str]]]:
    found: dict[str, Rollup] = {}
    devices: dict[str, set[str]] = {}
    for count, item in enumerate(reports.sums(connection, question)):
        if count == reports.ROWS_MAX:
            raise InvalidError(
                f"more than {reports.ROWS_MAX} rows would have to be added up: ask for a shorter time or for a group"
            )
        version = item["version"]
        if (known := found.get(version)) is None:
            found[version] = rollups.read(item)
        else:
            known.add(rollups.read(item))
        devices.setdefault(version, set()).add(item["device"])
    return found, devices


def _alarms(connection: Connection, model: str, begin: float, end: float) -> dict[str, int]:
    sql = (
        "SELECT version, COUNT(*) AS n FROM drift_event WHERE model = ? AND received_at >= ? AND received_at <= ?"
        " GROUP BY version"
    )
    return {item["version"]: item["n"] for item in rows(connection, sql, (model, begin, end))}


def _view(version: str, rollup: Rollup, devices: int, running: int, alarms: int, right: Judged) -> VersionPerformance:
    names = set(VersionPerformance.__struct_fields__) & set(reports.AGGREGATES)
    measured = reports.measured(rollup, sorted(names))
    most = sorted(rollup.labels.items(), key=lambda item: (-item[1], item[0]))[:LABELS_SHOWN_MAX]
    return VersionPerformance(
        version=version,
        devices=devices,
        running=running,
        drift_events=alarms,
        labelled=right.labelled,
        accuracy=right.accuracy,
        **{**measured, "labels": dict(most)},
    )
