"""Metrics as the pipeline keeps them."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest
from clocks import ManualClock
from hypothesis import given, settings
from hypothesis import strategies as st
from models import linear_model
from tinylcm import Pipeline
from tinylcm.metrics import BOUNDS_US, RING_WINDOWS, SAMPLE_COUNTS, STAGES, Metrics
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


def test_the_bounds_of_the_buckets_rise_and_the_last_bucket_is_open() -> None:
    assert list(BOUNDS_US) == sorted(set(BOUNDS_US))
    assert len(Metrics(("a",), ManualClock()).histogram().counts) == len(BOUNDS_US) + 1


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1e9))
def test_a_value_is_counted_at_or_below_its_bound_and_above_the_one_before(value: float) -> None:
    metrics = Metrics(("a",), ManualClock())
    metrics.update(value, 0.5, 0)
    (place,) = (index for index, count in enumerate(metrics.histogram().counts) if count)
    assert place == len(BOUNDS_US) or value <= BOUNDS_US[place]
    assert place == 0 or value > BOUNDS_US[place - 1]
    assert metrics.histogram().sum_us == value


@pytest.mark.parametrize("odd", [math.nan, -1.0, math.inf, -math.inf])
def test_odd_times_stay_inside_the_histogram(odd: float) -> None:
    metrics = Metrics(("a",), ManualClock())
    metrics.update(odd, 0.5, 0)
    assert sum(metrics.histogram().counts) == 1


def test_percentiles_are_those_of_numpy_within_a_bucket() -> None:
    values = np.random.default_rng(0).lognormal(4, 1.5, 20_000)
    metrics = Metrics(("a",), ManualClock())
    for value in values:
        metrics.update(float(value), 0.5, 0)
    for q in (0.01, 0.5, 0.95, 0.99):
        true = float(np.quantile(values, q, method="inverted_cdf"))
        assert true <= metrics.histogram().percentile(q) <= true * 1.25
    assert Metrics(("a",), ManualClock()).histogram().percentile(0.5) == 0.0


def test_histograms_labels_and_totals_count_from_the_start_and_summaries_from_the_last_clear() -> None:
    metrics = Metrics(("a", "b"), ManualClock())
    metrics.update(5.0, 0.9, 0)
    metrics.count_error()
    metrics.count_samples((1, 2, 3, 4, 5, 6, 7))
    metrics.clear()
    metrics.update(7.0, 0.8, 1)
    metrics.count_error()
    rollup, snapshot = metrics.rollup(), metrics.snapshot()
    assert sum(metrics.histogram().counts) == 2 and rollup["windows"] == 2 and snapshot["windows"] == 1
    assert metrics.labels() == rollup["labels"] == {"a": 1, "b": 1}
    assert snapshot["labels"] == {"a": 0, "b": 1}
    assert (rollup["errors"], snapshot["errors"]) == (2, 1)
    assert rollup["samples"] == dict(zip(SAMPLE_COUNTS, range(1, 8), strict=True))
    assert snapshot["dropped_samples"] == 0
    metrics.count_samples((0, 2, 0, 0, 0, 0, 0))
    assert metrics.snapshot()["dropped_samples"] == 2


def test_a_rollup_says_how_many_windows_a_second_and_is_json() -> None:
    clock = ManualClock()
    metrics = Metrics(("a",), clock)
    assert metrics.rollup()["windows_per_s"] == 0.0 and metrics.rollup()["confidence"] == {}
    for _ in range(30):
        metrics.update(100.0, 0.75, 0)
    clock.advance(10)
    clock.jump_wall(-1e9)
    rollup = json.loads(canonical_json(metrics.rollup()))
    assert rollup["windows_per_s"] == 3.0 and rollup["seconds"] == 10.0
    assert set(rollup["latency"]) == set(STAGES) and rollup["latency"]["total"]["p50_us"] >= 100.0
    assert rollup["confidence"]["p50"] == pytest.approx(0.75, rel=0.02)
    assert {"overflow", "swaps", "errors"} <= set(rollup)


def test_a_pipeline_fills_the_histogram_of_every_stage(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(linear_model(2, samples=5))
    pipeline = Pipeline(tmp_path / "model.onnx")
    for _ in range(7):
        prediction = pipeline.infer(np.ones((5, 2), np.float32))
    for stage in STAGES:
        assert sum(pipeline.metrics.histogram(stage).counts) == 7
    parts = (prediction.load_us, prediction.run_us, prediction.post_us, prediction.monitors_us)
    assert sum(parts) == pytest.approx(prediction.latency_us, rel=1e-6)
    total = pipeline.metrics.histogram().sum_us
    assert sum(pipeline.metrics.histogram(stage).sum_us for stage in STAGES[:-1]) == pytest.approx(total, rel=1e-6)


def test_reading_while_another_thread_predicts_sees_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(linear_model(2, samples=5))
    pipeline = Pipeline(tmp_path / "model.onnx")
    window = np.ones((5, 2), np.float32)
    thread = threading.Thread(target=lambda: [pipeline.infer(window) for _ in range(3000)])
    thread.start()
    seen = []
    while thread.is_alive():
        seen.append(pipeline.metrics.rollup()["windows"])
    thread.join()
    assert seen == sorted(seen) and pipeline.metrics.rollup()["windows"] == 3000
    assert sum(pipeline.metrics.histogram("run").counts) == 3000


def test_a_system_that_does_not_say_what_the_process_takes_costs_no_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError(5, "Input/output error", "/proc/self/stat")

    monkeypatch.setattr("psutil.Process", broken)
    metrics = Metrics(("a",), ManualClock())
    snapshot = metrics.snapshot()
    assert snapshot["rss_bytes"] is None and snapshot["cpu_percent"] is None and snapshot["windows"] == 0
    monkeypatch.undo()
    assert metrics.snapshot()["rss_bytes"] > 0  # type: ignore[operator]
