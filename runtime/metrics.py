"""Operational metrics of one model: a ring of the newest predictions and mergeable summaries of the rest."""

from __future__ import annotations

from typing import Final

import psutil
from tinylcm._ext.stats import MetricsRing, Summary

from .clock import Clock
from .types import Json

RING_WINDOWS: Final = 1024


def _summary_json(summary: Summary) -> dict[str, Json]:
    moments, sketch = summary.moments, summary.sketch
    empty = moments.count == 0
    return {
        "count": moments.count,
        "mean": moments.mean,
        "m2": moments.m2,
        "min": None if empty else moments.min,
        "max": None if empty else moments.max,
        "sketch": {
            "accuracy": sketch.accuracy,
            "zeros": sketch.zeros,
            "buckets": [[index, count] for index, count in sketch.items()],
        },
    }


class Metrics:
    """What a pipeline counts. One owner at a time: the pipeline's lock guards it.

    Args:
        labels: the model's labels.
        clock: for the bounds of a summary's interval.
    """

    def __init__(self, labels: tuple[str, ...], clock: Clock) -> None:
        self._labels = labels
        self._clock = clock
        self._ring = MetricsRing(RING_WINDOWS, len(labels))
        self.update = self._ring.update  # (latency_us, confidence, label index): compiled, allocates nothing
        self.errors = 0
        self.dropped_samples = 0
        self._start_ns = clock.boot_ns()
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only sets the mark that the next one measures from

    def recent(self) -> list[tuple[float, float, str]]:
        """The newest 1,024 predictions as (latency in us, confidence, label), oldest first."""
        return [(latency, confidence, self._labels[index]) for latency, confidence, index in self._ring.recent()]

    def snapshot(self) -> dict[str, Json]:
        """Everything since the last `clear`, in the form of a `summary` record without the model's name."""
        return {
            "start_ns": self._start_ns,
            "end_ns": self._clock.boot_ns(),
            "windows": self._ring.latency_us.moments.count,
            "latency_us": _summary_json(self._ring.latency_us),
            "confidence": _summary_json(self._ring.confidence),
            "labels": dict(zip(self._labels, self._ring.counts(), strict=True)),
            "errors": self.errors,
            "dropped_samples": self.dropped_samples,
            "rss_bytes": self._process.memory_info().rss,
            "cpu_percent": self._process.cpu_percent(),
        }

    def clear(self) -> None:
        """Begin a new interval; the ring stays."""
        self._ring.clear()
        self.errors = self.dropped_samples = 0
        self._start_ns = self._clock.boot_ns()
