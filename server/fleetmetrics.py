"""The metrics of a version over the whole fleet, hour by hour, as MLflow is to have them.

Rules
- A point is an hour of a version: what `rollups` has added up of it over all devices, the alarms received in it, and
  the accuracy of its predictions. It is made of the tables when it is sent, so what waits here is only its name.
- What has come since is found by the time of its receipt (summaries, alarms, judgements), behind a lag that is longer
  than any transaction takes. The cursors move in the transaction that notes what they have passed: nothing is missed.
- An hour is sent when it is over. A device that was away changes hours that MLflow has already: they are sent again, at
  most once an hour, under the same step with a later time. Of several values of one step the newest is the true one.
- What is sent is written down first, with its time. A try whose answer was lost is repeated with the very same values,
  which MLflow keeps once.
- At most `WAITING_MAX` points wait. When there are more, neighbouring ones of one day that MLflow never had become one
  that spans their hours; when none are left to be joined, what comes is not looked at until there is room: it stays in
  the tables, as long as `records` are kept.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from . import outbox, rollups
from .db import Connection, Row, Value, row, rows
from .judgements import judged
from .rollups import Rollup

HOUR_S: Final = 3600
DAY_S: Final = 86_400
LAG_S: Final = 120.0  # a writer gives up after 30 s, a statement of PostgreSQL too
OPEN_S: Final = 300.0  # after its end, before an hour is sent
AGAIN_S: Final = 3600.0  # between two versions of one point
AGE_MAX_S: Final = 400 * DAY_S  # of an hour that is still noted
WAITING_MAX: Final = 10_000
LABELS_MAX: Final = 30
_PIECE: Final = 5000
_PIECES_A_ROUND: Final = 40
_ROWS_A_PAGE: Final = 1000
_NO_KEY: Final = re.compile(r"[^\w \-]")
_SOURCES: Final[Mapping[str, str]] = {
    "summary": (
        "SELECT id, received_at AS seen, model, version, COALESCE(at, received_at) AS at FROM summary"
        " WHERE received_at >= ? AND received_at <= ? AND (received_at > ? OR id > ?) ORDER BY received_at, id LIMIT ?"
    ),
    "drift_event": (
        "SELECT id, received_at AS seen, model, version, received_at AS at FROM drift_event"
        " WHERE received_at >= ? AND received_at <= ? AND (received_at > ? OR id > ?) ORDER BY received_at, id LIMIT ?"
    ),
    "judgement": (
        "SELECT device || '/' || prediction AS id, changed_at AS seen, model, version, at FROM judgement"
        " WHERE changed_at >= ? AND changed_at <= ? AND (changed_at > ? OR device || '/' || prediction > ?)"
        " ORDER BY changed_at, device || '/' || prediction LIMIT ?"
    ),
}
_FIRST: Final[Mapping[str, int | str]] = {"summary": 0, "drift_event": 0, "judgement": ""}


@dataclass(frozen=True, slots=True)
class Made:
    """A point as it is sent: again exactly so, until MLflow has it.

    Attributes:
        at, span_s: where it begins, in Unix seconds, and how long it is.
        taken: the marks that it answers.
        stamp_ms: its time in MLflow.
        values: by name.
    """

    at: int
    span_s: int
    taken: int
    stamp_ms: int
    values: Mapping[str, float]


# What has come -----------------------------------------------------------------------------------------------


Writer = Callable[[Callable[[Connection], Any]], Any]


def note(write: Writer, now_s: float, waiting_max: int = WAITING_MAX) -> bool:
    """Note which points have changed by what has come since the last time; whether all of it was looked at."""
    for source in _SOURCES:
        for _ in range(_PIECES_A_ROUND):
            looked = write(partial(_note_piece, source=source, now_s=now_s, waiting_max=waiting_max))
            if looked is None:
                return False
            if looked < _PIECE:
                break
        else:
            return False
    return True


def _cursor(connection: Connection, source: str) -> tuple[float, int | str]:
    found = row(connection, "SELECT value FROM meta WHERE key = ?", (f"mlflow_{source}",))
    if found is None:
        return 0.0, _FIRST[source]
    seen, last = json.loads(found["value"])
    return float(seen), last


def _note_piece(connection: Connection, source: str, now_s: float, waiting_max: int) -> int | None:
    """Look at the next rows of a table; how many there were, or None when there is no room for what they change."""
    seen, last = _cursor(connection, source)
    values: tuple[Value, ...] = (seen, now_s - LAG_S, seen, last, _PIECE)
    found = rows(connection, _SOURCES[source], values)
    if not found:
        return 0
    if not _make_room(connection, waiting_max):
        return None
    changed: dict[tuple[str, str], set[int]] = {}
    for item in found:
        at = min(float(item["at"]), float(item["seen"]))
        if item["model"] is not None and at > now_s - AGE_MAX_S:
            changed.setdefault((item["model"], item["version"]), set()).add(int(at // HOUR_S) * HOUR_S)
    for (model, version), hours in changed.items():
        sql = "SELECT 1 AS one FROM model_version WHERE model = ? AND version = ?"
        if row(connection, sql, (model, version)) is not None:
            mark(connection, model, version, sorted(hours), now_s)
    connection.execute(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (f"mlflow_{source}", json.dumps([found[-1]["seen"], found[-1]["id"]])),
    )
    return len(found)


def mark(connection: Connection, model: str, version: str, hours: Sequence[int], now_s: float) -> None:
    """Note that hours of a version have changed."""
    due_s = math.inf
    for hour in hours:
        found = _covering(connection, model, version, hour)
        if found is None:
            connection.execute(
                "INSERT INTO fleet_point (model, version, at, span_s, marks, taken, settled, stamp_ms, body)"
                " VALUES (?, ?, ?, ?, 1, 0, 0, 0, '')",
                (model, version, hour, HOUR_S),
            )
            due_s = min(due_s, _due_s(hour, HOUR_S, 0))
        else:
            connection.execute(
                "UPDATE fleet_point SET marks = marks + 1 WHERE model = ? AND version = ? AND at = ?",
                (model, version, found["at"]),
            )
            due_s = min(due_s, _due_s(found["at"], found["span_s"], found["stamp_ms"]))
    outbox.mark(connection, "metrics", model, version, now_s, due_s=max(due_s, now_s))


def _covering(connection: Connection, model: str, version: str, hour: int) -> Row | None:
    found = row(
        connection,
        "SELECT at, span_s, stamp_ms FROM fleet_point WHERE model = ? AND version = ? AND at <= ?"
        " ORDER BY at DESC LIMIT 1",
        (model, version, hour),
    )
    return found if found is not None and hour < found["at"] + found["span_s"] else None


def _due_s(at: int, span_s: int, stamp_ms: int) -> float:
    """From when on a point may be sent."""
    return max(at + span_s + OPEN_S, stamp_ms / 1000 + AGAIN_S if stamp_ms else 0.0)


def count_waiting(connection: Connection) -> int:
    """Points that wait."""
    found = row(connection, "SELECT COUNT(*) AS n FROM fleet_point WHERE marks > settled")
    return int(found["n"]) if found else 0


def _make_room(connection: Connection, waiting_max: int) -> bool:
    """Whether more may wait, after joining what can be joined."""
    if count_waiting(connection) < waiting_max:
        return True
    join_days(connection)
    return count_waiting(connection) < waiting_max


def join_days(connection: Connection) -> int:
    """Make one point of those of a version's day that MLflow never had and that follow each other; how many went."""
    sql = (
        "SELECT model, version, at, span_s, stamp_ms FROM fleet_point WHERE marks > settled"
        " ORDER BY model, version, at LIMIT ?"
    )
    runs: list[list[Row]] = []
    for item in rows(connection, sql, (10 * WAITING_MAX,)):
        last = runs[-1][-1] if runs else None
        follows = (
            last is not None
            and (last["model"], last["version"], last["at"] // DAY_S)
            == (item["model"], item["version"], item["at"] // DAY_S)
            and not last["stamp_ms"]
            and not item["stamp_ms"]
            and _free(connection, last, item)
        )
        if follows:
            runs[-1].append(item)
        else:
            runs.append([item])
    gone = 0
    for run in (run for run in runs if len(run) > 1):
        first, last = run[0], run[-1]
        key = (first["model"], first["version"])
        connection.execute(
            "DELETE FROM fleet_point WHERE model = ? AND version = ? AND at > ? AND at <= ?",
            (*key, first["at"], last["at"]),
        )
        connection.execute(
            "UPDATE fleet_point SET span_s = ?, marks = marks + 1 WHERE model = ? AND version = ? AND at = ?",
            (last["at"] + last["span_s"] - first["at"], *key, first["at"]),
        )
        gone += len(run) - 1
    return gone


def _free(connection: Connection, first: Row, second: Row) -> bool:
    """Whether no point lies between two, such as one that MLflow has."""
    sql = "SELECT 1 AS one FROM fleet_point WHERE model = ? AND version = ? AND at > ? AND at < ?"
    return row(connection, sql, (first["model"], first["version"], first["at"], second["at"])) is None


# What is sent ------------------------------------------------------------------------------------------------


def make(connection: Connection, model: str, version: str, now_s: float, limit: int) -> tuple[list[Made], float | None]:
    """The next points of a version that may be sent, and from when on there are more; reads only.

    A point whose last try is not known to have arrived is as it was then.
    """
    sql = "SELECT * FROM fleet_point WHERE model = ? AND version = ? AND marks > settled ORDER BY at"
    made: list[Made] = []
    next_s: float | None = None
    for item in rows(connection, f"{sql} LIMIT ?", (model, version, 10 * WAITING_MAX)):
        unsure = item["taken"] > item["settled"]
        due_s = now_s if unsure else _due_s(item["at"], item["span_s"], item["stamp_ms"])
        if due_s > now_s:
            next_s = due_s if next_s is None else min(next_s, due_s)
        elif len(made) == limit:
            next_s = now_s
            break
        elif unsure:
            values = json.loads(item["body"])
            made.append(Made(item["at"], item["span_s"], item["taken"], item["stamp_ms"], values))
        else:
            stamp_ms = (item["at"] + item["span_s"]) * 1000
            if item["stamp_ms"]:
                stamp_ms = max(int(now_s * 1000), item["stamp_ms"] + 1)
            values = _values(connection, model, version, item["at"], item["span_s"])
            made.append(Made(item["at"], item["span_s"], item["marks"], stamp_ms, values))
    return made, next_s


def take(connection: Connection, model: str, version: str, made: Sequence[Made]) -> list[Made]:
    """Write down what is about to be sent; those that MLflow has exactly so are settled and left out."""
    left: list[Made] = []
    for point in made:
        key = (model, version, point.at)
        sql = "SELECT taken, settled, body FROM fleet_point WHERE model = ? AND version = ? AND at = ?"
        found = row(connection, sql, key)
        body = json.dumps(point.values, sort_keys=True)
        if found is None:
            continue
        if found["settled"] == found["taken"] and found["body"] == body:
            settle(connection, model, version, [point])
            continue
        connection.execute(
            "UPDATE fleet_point SET taken = ?, stamp_ms = ?, body = ? WHERE model = ? AND version = ? AND at = ?",
            (point.taken, point.stamp_ms, body, *key),
        )
        left.append(point)
    return left


def settle(connection: Connection, model: str, version: str, made: Sequence[Made]) -> None:
    """Note that MLflow has points."""
    for point in made:
        connection.execute(
            "UPDATE fleet_point SET settled = ?, taken = ? WHERE model = ? AND version = ? AND at = ?",
            (point.taken, point.taken, model, version, point.at),
        )


def send_again(connection: Connection, now_s: float, model: str | None = None, version: str | None = None) -> None:
    """Have every point sent once more as it was, of all versions or of one: MLflow may have lost them."""
    where = "" if model is None else " AND model = ? AND version = ?"
    values = () if model is None else (model, version)
    connection.execute(f"UPDATE fleet_point SET settled = 0 WHERE taken > 0{where}", values)  # noqa: S608 (constants)
    sql = f"SELECT DISTINCT model, version FROM fleet_point WHERE marks > settled{where} LIMIT 100000"  # noqa: S608
    for item in rows(connection, sql, values):
        outbox.mark(connection, "metrics", item["model"], item["version"], now_s)


def _values(connection: Connection, model: str, version: str, at: int, span_s: int) -> dict[str, float]:
    """What is known of a version between two times."""
    devices, total = _added(connection, model, version, at, at + span_s)
    latency, confidence = total.latency_us, total.confidence
    found: dict[str, float | None] = {
        "span_s": span_s,
        "devices": devices,
        "windows": total.windows,
        "errors": total.errors,
        "dropped_samples": total.dropped_samples,
        "confidence_mean": confidence.mean,
        "confidence_p5": confidence.quantile(0.05),
        "confidence_p50": confidence.quantile(0.5),
        "latency_mean_us": latency.mean,
        "latency_p50_us": latency.quantile(0.5),
        "latency_p95_us": latency.quantile(0.95),
        "latency_p99_us": latency.quantile(0.99),
        "latency_max_us": latency.max,
        "rss_bytes": total.rss_bytes,
        "cpu_percent": total.cpu_percent,
        "drift_events": _alarms(connection, model, version, at, at + span_s),
        **_predictions(total.labels),
    }
    right = judged(connection, model, at, at + span_s).get(version)
    if right is not None:
        found |= {"labelled": right.labelled, "accuracy": right.accuracy}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def _added(connection: Connection, model: str, version: str, since: int, until: int) -> tuple[int, Rollup]:
    devices, total = set(), Rollup()
    after: tuple[int, str] = (since, "")
    while True:
        page = rows(
            connection,
            "SELECT * FROM rollup WHERE step = 3600 AND at >= ? AND at < ? AND (at, device) > (?, ?)"
            " AND model = ? AND version = ? ORDER BY at, device LIMIT ?",
            (since, until, *after, model, version, _ROWS_A_PAGE),
        )
        for item in page:
            devices.add(item["device"])
            total.add(rollups.read(item))
        if len(page) < _ROWS_A_PAGE:
            return len(devices), total
        after = (page[-1]["at"], page[-1]["device"])


def _alarms(connection: Connection, model: str, version: str, since: int, until: int) -> int:
    sql = (
        "SELECT COUNT(*) AS n FROM drift_event WHERE received_at >= ? AND received_at < ? AND model = ? AND version = ?"
    )
    return int(rows(connection, sql, (since, until, model, version))[0]["n"])


def _predictions(labels: Mapping[str, int]) -> dict[str, float | None]:
    """How often each of the most frequent labels was predicted, under a name that MLflow takes."""
    most = sorted(labels.items(), key=lambda item: (-item[1], item[0]))[:LABELS_MAX]
    found: dict[str, float | None] = {}
    for label, count in most:
        key = f"predictions/{_NO_KEY.sub('_', label)[:100] or '_'}"
        found[key] = (found.get(key) or 0) + count
    return found
