"""Summaries added up by device, model, version and minute, hour and day, as they come: nothing is computed again later.

Rules
- A summary is counted where its record's time lies, on the server's clock; the time of its receipt stands for a time
  that is unknown or that has not come yet.
- It is counted in the transaction that settles its record, so exactly once.
- Counts, labels and sketches are added, memory is the highest, the processor's load is weighted by windows.
- `latest` is the newest summary of a model on a device, by the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from .distributions import Distribution
from .sql import Connection, Row, Value, rows_of

STEPS: Final[Mapping[str, int]] = {"minute": 60, "hour": 3600, "day": 86_400}  # seconds
LABELS_KEPT_MAX: Final = 10_000
COUNT_MAX: Final = (1 << 63) - 1
_COLUMNS: Final = ("device", "model", "version", "step", "at", "windows", "errors", "dropped_samples", "labels", "body")


class Rollup(msgspec.Struct, array_like=True):
    """What was counted in one step of time."""

    windows: int = 0
    errors: int = 0
    dropped_samples: int = 0
    latency_us: Distribution = msgspec.field(default_factory=Distribution)
    confidence: Distribution = msgspec.field(default_factory=Distribution)
    labels: dict[str, int] = {}
    rss_bytes: int | None = None
    cpu_percent: float | None = None
    cpu_weight: int = 0

    def add(self, other: Rollup) -> None:
        """Count what the other has counted."""
        self.windows = min(self.windows + other.windows, COUNT_MAX)
        self.errors = min(self.errors + other.errors, COUNT_MAX)
        self.dropped_samples = min(self.dropped_samples + other.dropped_samples, COUNT_MAX)
        self.latency_us.add(other.latency_us)
        self.confidence.add(other.confidence)
        if other.labels:
            labels = dict(self.labels)
            for label, count in other.labels.items():
                if label in labels or len(labels) < LABELS_KEPT_MAX:
                    labels[label] = min(labels.get(label, 0) + count, COUNT_MAX)
            self.labels = labels
        if other.rss_bytes is not None:
            self.rss_bytes = max(other.rss_bytes, self.rss_bytes or 0)
        if other.cpu_percent is not None:
            weight = min(self.cpu_weight + max(other.cpu_weight, 1), COUNT_MAX)
            share = max(other.cpu_weight, 1) / weight
            before = other.cpu_percent if self.cpu_percent is None else self.cpu_percent
            self.cpu_percent, self.cpu_weight = before + (other.cpu_percent - before) * share, weight


_Body = tuple[Distribution, Distribution, int | None, float | None, int]
_encode: Final = msgspec.msgpack.Encoder().encode
_decode_body: Final = msgspec.msgpack.Decoder(_Body).decode
_decode_labels: Final = msgspec.json.Decoder(dict[str, int]).decode


def read(found: Row) -> Rollup:
    """A rollup from its row: the columns windows, errors, dropped_samples, labels and body."""
    latency, confidence, rss_bytes, cpu_percent, cpu_weight = _decode_body(bytes(found["body"]))
    return Rollup(
        found["windows"],
        found["errors"],
        found["dropped_samples"],
        latency,
        confidence,
        _decode_labels(found["labels"]),
        rss_bytes,
        cpu_percent,
        cpu_weight,
    )


def _stored(rollup: Rollup) -> tuple[Value, ...]:
    """The columns that `read` reads."""
    body = _encode((rollup.latency_us, rollup.confidence, rollup.rss_bytes, rollup.cpu_percent, rollup.cpu_weight))
    labels = msgspec.json.encode(rollup.labels).decode()
    return rollup.windows, rollup.errors, rollup.dropped_samples, labels, body


_CHANGED: Final = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[5:])
_HEAD: Final = f"INSERT INTO rollup ({', '.join(_COLUMNS)})"
_TAIL: Final = f"ON CONFLICT (device, model, version, step, at) DO UPDATE SET {_CHANGED}"
_Key = tuple[str, str, str, int, int]


class Rollups:
    """The summaries of one transaction, added up before they meet what is stored."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sums: dict[_Key, Rollup] = {}
        self._own: set[_Key] = set()  # the others are as they came, in several steps at once: they may not be changed

    def add(self, device: str, model: str, version: str, time_s: float, rollup: Rollup) -> None:
        """Count a summary in each of its steps."""
        for step in STEPS.values():
            key = device, model, version, step, int(time_s // step) * step
            known = self._sums.get(key)
            if known is None:
                self._sums[key] = rollup
                continue
            if key not in self._own:
                self._own.add(key)
                known, first = Rollup(), known
                known.add(first)
                self._sums[key] = known
            known.add(rollup)

    def flush(self) -> None:
        """Add the sums to what is stored."""
        for found in rows_of(self._connection, "rollup", _COLUMNS, _COLUMNS[:5], list(self._sums)):
            key = found["device"], found["model"], found["version"], int(found["step"]), int(found["at"])
            stored = read(found)
            stored.add(self._sums[key])
            self._sums[key] = stored
        self._connection.bulk(_HEAD, [(*key, *_stored(rollup)) for key, rollup in self._sums.items()], _TAIL)
        self._sums, self._own = {}, set()
