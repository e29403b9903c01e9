"""Operational metrics of one model: a ring of the newest predictions, latency histograms and mergeable summaries.

What is counted in C by the hot route, nothing here repeats; a reader copies, and no stream waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import psutil
from tinylcm._ext.stats import STAGE_NAMES, MetricsRing, Summary, bucket_bounds

from .clock import Clock
from .types import Json

RING_WINDOWS: Final = 1024
STAGES: Final = (*STAGE_NAMES, "total")
BOUNDS_US: Final = tuple(bucket_bounds())
SAMPLE_COUNTS: Final = ("missing", "dropped", "filled", "late", "duplicates", "gaps", "restarts")


@dataclass(frozen=True, slots=True)
class Histogram:
    """A latency histogram: counts of the buckets that end at `BOUNDS_US`, the last one open, since the start.

    Attributes:
        counts: `[108]`; four buckets to each doubling, from 0.25 us to 27 s.
        sum_us: of all values, in microseconds.
    """

    counts: tuple[int, ...]
    sum_us: float

    def percentile(self, q: float) -> float:
        """The upper end of the bucket in which the value of rank q, 0 to 1, lies: at most 25 % above it; 0: empty."""
        rank, seen = q * sum(self.counts), 0
        for bound, count in zip((*BOUNDS_US, BOUNDS_US[-1] * 2), self.counts, strict=True):
            seen += count
            if seen and seen >= rank:
                return bound
        return 0.0


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

    Attributes:
        errors: windows and inputs that gave no prediction, since the last `clear`.
        dropped_samples: samples that were given and not taken, since the last `clear`.
        samples: what happened to the stream's samples, by name, since the start.
        totals: windows, errors, `overflow` (items that a worker's queue lost) and `swaps`, since the start.
    """

    def __init__(self, labels: tuple[str, ...], clock: Clock) -> None:
        self._labels = labels
        self._clock = clock
        self.ring = MetricsRing(RING_WINDOWS, len(labels))
        self.update = self.ring.update  # (latency_us, confidence, label index): compiled, allocates nothing
        self.errors = 0
        self.dropped_samples = 0
        self.samples = dict.fromkeys(SAMPLE_COUNTS, 0)
        self.totals = {"errors": 0, "overflow": 0, "swaps": 0}
        self._labels_before = [0] * len(labels)
        self._start_ns = self._first_ns = clock.boot_ns()
        self._process: psutil.Process | None = None
        self._load()  # the first call only sets the mark that the next one measures from

    def count_samples(self, counts: Sequence[int]) -> None:
        """Take what a stream's windower has counted, in the order of `SAMPLE_COUNTS`."""
        for name, count in zip(SAMPLE_COUNTS, counts, strict=True):
            self.samples[name] += count
        self.dropped_samples += counts[1]

    def count_error(self) -> None:
        """One window or input gave no prediction."""
        self.errors += 1
        self.totals["errors"] += 1

    def recent(self) -> list[tuple[float, float, str]]:
        """The newest 1,024 predictions as (latency in us, confidence, label), oldest first."""
        return [(latency, confidence, self._labels[index]) for latency, confidence, index in self.ring.recent()]

    def histogram(self, stage: str = "total") -> Histogram:
        """The latencies of a stage, one of `STAGES`."""
        counts, sum_us = self.ring.histogram(stage)
        return Histogram(tuple(counts), sum_us)

    def labels(self) -> dict[str, int]:
        """Predictions of each label since the start."""
        counts = zip(self._labels, self._labels_before, self.ring.counts(), strict=True)
        return {label: before + now for label, before, now in counts}

    def rollup(self) -> dict[str, Json]:
        """Everything since the start, for people and for Prometheus; nothing is reset."""
        seconds = (self._clock.boot_ns() - self._first_ns) / 1e9
        stages: dict[str, Json] = {}
        for stage in STAGES:
            histogram = self.histogram(stage)
            stages[stage] = {
                "p50_us": histogram.percentile(0.5),
                "p95_us": histogram.percentile(0.95),
                "p99_us": histogram.percentile(0.99),
                "sum_us": histogram.sum_us,
                "counts": list(histogram.counts),
            }
        confidence = self.ring.confidence
        return {
            "windows": self.ring.total,
            "seconds": seconds,
            "windows_per_s": self.ring.total / seconds if seconds > 0 else 0.0,
            "latency": stages,
            "confidence": {f"p{q}": confidence.sketch.quantile(q / 100) for q in (1, 5, 50)}
            if confidence.moments.count
            else {},
            "labels": dict(self.labels()),
            "samples": dict(self.samples),
            **self.totals,
        }

    def snapshot(self) -> dict[str, Json]:
        """Everything since the last `clear`, in the form of a `summary` record without the model's name."""
        return {
            "start_ns": self._start_ns,
            "end_ns": self._clock.boot_ns(),
            "windows": self.ring.latency_us.moments.count,
            "latency_us": _summary_json(self.ring.latency_us),
            "confidence": _summary_json(self.ring.confidence),
            "labels": dict(zip(self._labels, self.ring.counts(), strict=True)),
            "errors": self.errors,
            "dropped_samples": self.dropped_samples,
            **self._load(),
        }

    def _load(self) -> dict[str, Json]:
        """What the process takes; None where the system does not say: a summary is worth more than these two."""
        try:
            if self._process is None:
                self._process = psutil.Process()
            return {"rss_bytes": self._process.memory_info().rss, "cpu_percent": self._process.cpu_percent()}
        except (OSError, psutil.Error):
            return {"rss_bytes": None, "cpu_percent": None}

    def clear(self) -> None:
        """Begin a new interval; the ring, the histograms and the totals stay."""
        self._labels_before = list(self.labels().values())
        self.ring.clear()
        self.errors = self.dropped_samples = 0
        self._start_ns = self._clock.boot_ns()
