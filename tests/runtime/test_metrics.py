"""Metrics as the pipeline keeps them."""

from __future__ import annotations

import json

from clocks import ManualClock
from tinylcm.metrics import RING_WINDOWS, Metrics
from tinylcm.wire import canonical_json


def test_a_snapshot_is_mergeable_json_and_an_empty_one_too() -> None:
    metrics = Metrics(("a", "b"), ManualClock())
    assert json.loads(canonical_json(metrics.snapshot()))["latency_us"]["min"] is None
    for index in range(RING_WINDOWS + 5):
        metrics.update(float(index), 0.5, index % 2)
    snapshot = json.loads(canonical_json(metrics.snapshot()))
    assert snapshot["latency_us"]["count"] == sum(snapshot["labels"].values()) == RING_WINDOWS + 5
    assert snapshot["latency_us"]["max"] == RING_WINDOWS + 4
    buckets = snapshot["latency_us"]["sketch"]["buckets"]
    assert sum(count for _, count in buckets) + snapshot["latency_us"]["sketch"]["zeros"] == RING_WINDOWS + 5
    assert len(metrics.recent()) == RING_WINDOWS and metrics.recent()[0] == (5.0, 0.5, "b")


def test_clear_begins_a_new_interval() -> None:
    clock = ManualClock()
    metrics = Metrics(("a",), clock)
    metrics.errors = 3
    clock.advance(2)
    metrics.clear()
    snapshot = metrics.snapshot()
    assert snapshot["errors"] == 0 and snapshot["start_ns"] == clock.boot_ns()
