"""Predictions whose input was kept, and their true labels: how often a version was right.

Rules
- A `sample` record says what was predicted, a `label` record what was true; either may come first, and both meet in the
  row of their prediction. The last true label counts.
- The time of a judgement is that of the prediction, when it is known.
- A label of a prediction whose input was not kept judges nothing: it is in the table of labels, like every other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from .sql import Connection, Value, rows

TEXT_CHARACTERS_MAX: Final = 256
_DEVICES_A_QUERY: Final = 200
_PREDICTED: Final = (
    "INSERT INTO judgement (device, prediction, model, version, predicted, at, changed_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device, prediction) DO UPDATE SET model = excluded.model,"
    " version = excluded.version, predicted = excluded.predicted, at = excluded.at, changed_at = excluded.changed_at"
)
_TRUE: Final = (
    "INSERT INTO judgement (device, prediction, truth, at, changed_at) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (device, prediction) DO UPDATE SET truth = excluded.truth, changed_at = excluded.changed_at"
)


@dataclass(frozen=True, slots=True)
class Judged:
    """Predictions that have a true label, and those of them that were right."""

    labelled: int
    correct: int

    @property
    def accuracy(self) -> float | None:
        """The share that was right, or None when nothing was labelled."""
        return self.correct / self.labelled if self.labelled else None


@dataclass(slots=True)
class Judgements:
    """One device's samples and labels of one batch."""

    device: str
    now_s: float
    _predicted: list[tuple[Value, ...]] = field(default_factory=list)
    _true: list[tuple[Value, ...]] = field(default_factory=list)

    def predicted(self, payload: Mapping[str, object], at: float | None) -> None:
        """A sample record's prediction; one that names no label, such as a regression's, cannot be judged."""
        texts = [payload.get(key) for key in ("prediction", "model", "version", "label")]
        if all(isinstance(text, str) and 0 < len(text) <= TEXT_CHARACTERS_MAX for text in texts):
            named = [str(text) for text in texts]
            self._predicted.append((self.device, *named, self._time(at), self.now_s))

    def true(self, prediction: str, label: str, at: float | None) -> None:
        """A label record."""
        if len(prediction) <= TEXT_CHARACTERS_MAX and len(label) <= TEXT_CHARACTERS_MAX:
            self._true.append((self.device, prediction, label, self._time(at), self.now_s))

    def _time(self, at: float | None) -> float:
        return self.now_s if at is None or at > self.now_s else max(at, 0.0)

    def flush(self, connection: Connection) -> None:
        """Write them."""
        if self._predicted:
            connection.executemany(_PREDICTED, self._predicted)
        if self._true:
            connection.executemany(_TRUE, self._true)


def judged(
    connection: Connection, model: str, since: float, until: float, devices: Sequence[str] | None = None
) -> dict[str, Judged]:
    """By version of a model, of the predictions from `since` up to but without `until`, of all devices or of some."""
    pieces = [None] if devices is None else [devices[i : i + _DEVICES_A_QUERY] for i in _starts(devices)]
    found: dict[str, Judged] = {}
    for piece in pieces:
        where = "" if piece is None else f" AND device IN ({', '.join('?' * len(piece))})"
        sql = (
            "SELECT version, COUNT(*) AS labelled, SUM(CASE WHEN predicted = truth THEN 1 ELSE 0 END) AS correct"  # noqa: S608
            f" FROM judgement WHERE model = ? AND at >= ? AND at < ? AND truth IS NOT NULL{where} GROUP BY version"
        )
        for item in rows(connection, sql, (model, since, until, *(piece or ()))):
            known = found.get(item["version"], Judged(0, 0))
            found[item["version"]] = Judged(
                known.labelled + int(item["labelled"]), known.correct + int(item["correct"])
            )
    return found


def _starts(devices: Sequence[str]) -> range:
    return range(0, len(devices), _DEVICES_A_QUERY)
