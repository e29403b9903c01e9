"""Streaming statistics against two passes of numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylcm._ext.stats import MetricsRing, top
from tinylcm.stats import Moments, Sketch, Summary, window_moments

finite_floats = st.floats(-1e6, 1e6, allow_subnormal=True)


def moments_of(values: list[float]) -> Moments:
    moments = Moments()
    for value in values:
        moments.update(value)
    return moments


@given(st.lists(finite_floats, min_size=2, max_size=50), st.lists(finite_floats, max_size=50))
def test_merged_moments_equal_those_of_everything(left: list[float], right: list[float]) -> None:
    merged, whole = moments_of(left), np.array(left + right)
    merged.merge(moments_of(right))
    assert merged.count == len(whole)
    assert merged.min == whole.min() and merged.max == whole.max()
    assert merged.mean == pytest.approx(whole.mean(), rel=1e-9, abs=1e-6)
    assert merged.variance == pytest.approx(whole.var(ddof=1), rel=1e-6, abs=1e-3)


def test_values_that_are_not_finite_are_counted_apart() -> None:
    moments = moments_of([1.0, math.nan, math.inf, 3.0])
    assert (moments.count, moments.ignored, moments.mean) == (2, 2, 2.0)


@given(st.lists(st.floats(1e-2, 1e6), min_size=1, max_size=200), st.floats(0, 1))
def test_a_quantile_is_within_the_stated_accuracy(values: list[float], q: float) -> None:
    sketch = Sketch(0.01, 1e-3, 4096)
    for value in values:
        sketch.update(value)
    true = float(np.quantile(values, q, method="lower"))
    assert abs(sketch.quantile(q) - true) <= 0.0101 * true


def test_merged_sketches_equal_that_of_everything() -> None:
    left, right, whole = Sketch(), Sketch(), Sketch()
    for index, value in enumerate(np.random.default_rng(1).lognormal(3, 1, 500)):
        (left if index % 2 else right).update(value)
        whole.update(value)
    left.merge(right)
    assert left.items() == whole.items()
    with pytest.raises(ValueError, match="same accuracy"):
        left.merge(Sketch(0.02))


def test_a_sketch_stays_bounded_whatever_comes() -> None:
    sketch = Sketch(0.01, 1.0, 16)
    for value in (0.0, -5.0, 1e-300, 1e300, math.nan):
        sketch.update(value)
    assert sketch.count == 4
    assert sketch.zeros == 3
    assert len(sketch.items()) == 1
    assert math.isnan(Sketch().quantile(0.5))


def test_window_moments_equal_numpy_with_a_large_offset() -> None:
    window = (np.random.default_rng(2).standard_normal((100, 6)) + 1000).astype(np.float32)
    mean, std = np.zeros(6), np.zeros(6)
    window_moments(window, mean, std)
    np.testing.assert_allclose(mean, window.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, window.astype(float).std(0), rtol=1e-9)


def test_the_metrics_ring_keeps_the_newest_and_sums_up_the_rest() -> None:
    ring = MetricsRing(3, 2)
    for index in range(5):
        ring.update(10.0 * index, 0.5, index % 2)
    assert ring.recent() == [(20.0, 0.5, 0), (30.0, 0.5, 1), (40.0, 0.5, 0)]
    assert ring.counts() == [3, 2]
    assert ring.latency_us.moments.mean == 20.0
    ring.clear()
    assert ring.counts() == [0, 0] and ring.latency_us.moments.count == 0 and len(ring.recent()) == 3
    with pytest.raises(ValueError, match="label 2"):
        ring.update(1.0, 1.0, 2)


def test_summary_feeds_both_parts() -> None:
    summary = Summary()
    summary.update(5.0)
    assert summary.moments.mean == 5.0 and summary.sketch.count == 1
    summary.clear()
    assert summary.moments.count == summary.sketch.count == 0


def test_top_is_the_first_of_the_greatest_and_refuses_nan() -> None:
    assert top(np.array([0.1, 0.7, 0.7], dtype=np.float32)) == 1
    assert top(np.array([0.1, np.nan], dtype=np.float32)) == -1
