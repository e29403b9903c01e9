"""Streaming statistics against numpy, river and ddsketch's guarantee; states, merges and bad input of every one."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
import river.stats
from hypothesis import given
from hypothesis import strategies as st
from tinylcm._ext.stats import MetricsRing, top
from tinylcm.errors import ConfigError, InputError
from tinylcm.stats import (
    CountMin,
    Covariance,
    EWMean,
    EWVar,
    FeatureBlock,
    Histogram,
    Mean,
    MinMax,
    Moments,
    P2Quantile,
    QuantileSketch,
    Reservoir,
    RollingMinMax,
    RollingQuantile,
    SpaceSaving,
    Summary,
    Var,
    window_moments,
)

HUGE = 1e140
SCALAR: dict[str, Callable[[], Any]] = {
    "Mean": Mean,
    "Var": Var,
    "EWMean": lambda: EWMean(0.1),
    "EWVar": lambda: EWVar(0.1),
    "MinMax": MinMax,
    "Moments": Moments,
    "Histogram": lambda: Histogram([-10.0, 0.0, 1.0, 5.0]),
    "QuantileSketch": lambda: QuantileSketch(0.02, 64),
    "P2Quantile": lambda: P2Quantile(0.3),
    "RollingMinMax": lambda: RollingMinMax(7),
    "RollingQuantile": lambda: RollingQuantile(0.3, 7),
    "Reservoir": lambda: Reservoir(5, 3),
}
BLOCKS: dict[str, Callable[[], Any]] = {"Covariance": lambda: Covariance(3), "FeatureBlock": lambda: FeatureBlock(3)}
COUNTED: dict[str, Callable[[], Any]] = {"CountMin": lambda: CountMin(64, 3), "SpaceSaving": lambda: SpaceSaving(4)}
MERGED = ("Mean", "Var", "MinMax", "Moments", "Histogram", "QuantileSketch")

any_float = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True, width=64)
streams = st.lists(st.one_of(st.floats(-1e6, 1e6), any_float, st.sampled_from([0.0, 1.0, 5e-324, 1e308])), max_size=60)


def value_of(statistic: Any) -> np.ndarray:
    if isinstance(statistic, FeatureBlock):
        return np.concatenate([np.ravel(part) for part in statistic.get().values()])
    if isinstance(statistic, CountMin):
        return np.array([statistic.get(item) for item in ("a", "b", b"a", 1)])
    if isinstance(statistic, SpaceSaving):
        return np.array([count for _, count, _ in statistic.get()])
    return np.ravel(np.asarray(statistic.get(), dtype=np.float64))


# every one ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCALAR)
@given(stream=streams)
def test_a_block_is_the_same_as_single_values(name: str, stream: list[float]) -> None:
    one, many = SCALAR[name](), SCALAR[name]()
    for value in stream:
        one.update(value)
    many.update_many(np.array(stream))
    assert (one.count, one.ignored) == (many.count, many.ignored)
    assert one.count + one.ignored == len(stream)
    # Mean and Var sum blocks in two passes; the reference of what rounding may do is the largest value.
    good = [abs(value) for value in stream if abs(value) <= HUGE]
    scale = max(good, default=0.0)
    tolerance = 1e-12 * (scale**2 if name == "Var" else scale)
    np.testing.assert_allclose(value_of(one), value_of(many), rtol=1e-9, atol=tolerance)


@pytest.mark.parametrize("name", SCALAR)
@given(stream=streams, later=streams)
def test_a_restored_one_goes_on_bit_for_bit(name: str, stream: list[float], later: list[float]) -> None:
    first = SCALAR[name]()
    first.update_many(stream)
    second = type(first).from_state(first.to_state())
    assert second.to_state() == first.to_state()
    for value in later:
        first.update(value)
        second.update(value)
    assert second.to_state() == first.to_state()
    np.testing.assert_array_equal(value_of(first), value_of(second))


@pytest.mark.parametrize("name", MERGED)
@given(left=streams, right=streams)
def test_merged_ones_equal_one_that_saw_everything(name: str, left: list[float], right: list[float]) -> None:
    a, b, whole = SCALAR[name](), SCALAR[name](), SCALAR[name]()
    a.update_many(left)
    b.update_many(right)
    whole.update_many(left + right)
    a.merge(b)
    assert (a.count, a.ignored) == (whole.count, whole.ignored)
    scale = max((abs(value) for value in left + right if abs(value) <= HUGE), default=0.0)
    tolerance = 1e-300 + 1e-12 * (scale**2 if name in ("Var", "Moments") else scale)  # subnormals have no digits
    if name == "QuantileSketch":
        for q in (0.0, 0.3, 1.0):
            np.testing.assert_equal(a.quantile(q), whole.quantile(q))
    else:
        np.testing.assert_allclose(value_of(a), value_of(whole), rtol=1e-9, atol=tolerance)


@pytest.mark.parametrize("name", SCALAR)
def test_a_nan_changes_nothing_and_is_counted(name: str) -> None:
    statistic, clean = SCALAR[name](), SCALAR[name]()
    for value in (1.0, math.nan, 2.0, math.inf, -math.inf, 1e200, 3.0):
        statistic.update(value)
    clean.update_many([1.0, 2.0, 3.0])
    assert statistic.ignored == 4 and statistic.count == 3
    np.testing.assert_array_equal(value_of(statistic), value_of(clean))


@pytest.mark.parametrize("name", [*SCALAR, *BLOCKS, *COUNTED])
def test_a_damaged_state_is_refused(name: str) -> None:
    make = (SCALAR | BLOCKS | COUNTED)[name]
    statistic = make()
    statistic.update_many(["a", "b"] if name in COUNTED else [[1.0, 2.0, 3.0]] if name in BLOCKS else [1.0, 2.0, 3.0])
    kind, state = type(statistic), statistic.to_state()
    document = msgpack.unpackb(state)
    bad: list[Any] = [b"", state[:-1], state + b"x", "text", None, msgpack.packb([1])]
    bad.append(msgpack.packb(["Other", *document[1:]]))
    bad.append(msgpack.packb([document[0], 99, *document[2:]]))
    bad.append(msgpack.packb([document[0], 1, document[2], document[3][:-1]]))
    bad.append(msgpack.packb([document[0], 1, [*document[2], 1, 2, 3, 4], document[3]]))
    for index in range(len(document[3])):
        for wrong in (None, -1, math.nan, b"\0", "x", 1 << 63):
            if wrong == -1 and isinstance(document[3][index], float):
                continue  # a number like any other
            if isinstance(document[3][index], bool) or (kind is Reservoir and index == 2):
                continue
            if kind is QuantileSketch and index in (4, 6) and wrong == -1:
                continue  # a bucket's index may be negative
            fields = [*document[3]]
            fields[index] = wrong
            bad.append(msgpack.packb([document[0], 1, document[2], fields]))
    for wrong in bad:
        with pytest.raises(InputError):
            kind.from_state(wrong)


@pytest.mark.parametrize("name", SCALAR)
@given(cut=st.integers(0, 200), flip=st.integers(0, 255))
def test_no_bytes_at_all_crash_the_process(name: str, cut: int, flip: int) -> None:
    statistic = SCALAR[name]()
    statistic.update_many([1.0, 2.0, 3.0, -4.0] * 4)
    state = bytearray(statistic.to_state())
    state[cut % len(state)] ^= flip
    try:
        other = type(statistic).from_state(bytes(state))
    except InputError:
        return
    other.update_many([1.0, -1.0] * 20)
    assert other.count + other.ignored >= 20
    other.get()


@pytest.mark.parametrize("name", [*SCALAR, *BLOCKS, *COUNTED])
def test_copies_and_pickles_are_the_same(name: str) -> None:
    statistic = (SCALAR | BLOCKS | COUNTED)[name]()
    statistic.update_many(["a", "b"] if name in COUNTED else [[1.0, 2.0, 3.0]] if name in BLOCKS else [1.0, 2.0])
    assert copy.deepcopy(statistic).to_state() == statistic.to_state()


@pytest.mark.parametrize("name", SCALAR)
def test_blocks_of_any_kind_are_taken_and_wrong_ones_refused(name: str) -> None:
    one, two = SCALAR[name](), SCALAR[name]()
    one.update_many(np.arange(20, dtype=np.int16)[::2])
    two.update_many([float(value) for value in range(0, 20, 2)])
    assert one.to_state() == two.to_state()
    one.update_many([])
    for wrong in ([[1.0]], "text", [object()], 3.0):
        with pytest.raises(InputError):
            one.update_many(wrong)
    with pytest.raises(TypeError):
        one.update("x")
    assert one.to_state() == two.to_state()


@pytest.mark.parametrize(
    "build",
    [
        lambda: Var(2),
        lambda: EWMean(0.0),
        lambda: EWVar(math.nan),
        lambda: Covariance(0),
        lambda: FeatureBlock(1 << 20),
        lambda: FeatureBlock(2, 2.0),
        lambda: Histogram([1.0]),
        lambda: Histogram([1.0, 1.0]),
        lambda: Histogram([0.0, math.nan]),
        lambda: Histogram.from_reference([1.0, 1.0]),
        lambda: Histogram.from_reference([math.nan]),
        lambda: Histogram.from_reference([1.0, 2.0], 0),
        lambda: QuantileSketch(0.0),
        lambda: QuantileSketch(0.01, 1),
        lambda: QuantileSketch(0.01, 64, -1.0),
        lambda: P2Quantile(1.1),
        lambda: RollingMinMax(0),
        lambda: RollingQuantile(0.5, 1 << 20),
        lambda: RollingQuantile(math.nan, 5),
        lambda: Reservoir(0),
        lambda: CountMin(1),
        lambda: CountMin(1 << 24, 4),
        lambda: SpaceSaving(0),
    ],
)
def test_wrong_parameters_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        build()


def test_unlike_ones_are_not_merged() -> None:
    with pytest.raises(ConfigError, match="same edges"):
        Histogram([0.0, 1.0]).merge(Histogram([0.0, 2.0]))
    with pytest.raises(ConfigError, match="same accuracy"):
        QuantileSketch(0.01).merge(QuantileSketch(0.02))
    with pytest.raises(ConfigError, match="same d"):
        Covariance(2).merge(Covariance(3))
    with pytest.raises(ConfigError, match="same width"):
        CountMin(8).merge(CountMin(16))
    with pytest.raises(TypeError):
        Mean().merge(Var())  # type: ignore[arg-type]
    for name, make in SCALAR.items():
        assert hasattr(make(), "merge") == (name in MERGED)


# moments --------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=1200))
def test_moments_equal_two_passes_of_numpy(values: list[float]) -> None:
    var, mean = Var(), Mean()
    var.update_many(np.array(values))
    mean.update_many(np.array(values))
    scale = max(map(abs, values))
    assert mean.get() == pytest.approx(math.fsum(values) / len(values), rel=1e-12, abs=1e-14 * scale + 1e-300)
    assert var.get() == pytest.approx(np.var(values, ddof=1), rel=1e-10, abs=1e-24 * scale**2 + 1e-300)
    assert var.std == pytest.approx(np.std(values, ddof=1), rel=1e-10, abs=1e-12 * scale + 1e-150)


def test_single_updates_are_rivers_bit_for_bit() -> None:
    stream = np.random.default_rng(4).normal(3, 2, 500)
    mean, weighted, p2 = Mean(), EWMean(0.3), P2Quantile(0.9)
    river_mean, river_weighted = river.stats.Mean(), river.stats.EWMean(0.3)
    river_p2 = river.stats.Quantile(0.9)
    for value in stream:
        for ours, theirs in ((mean, river_mean), (weighted, river_weighted), (p2, river_p2)):
            ours.update(value)
            theirs.update(float(value))
            assert ours.get() == theirs.get()


def test_a_large_offset_costs_no_precision() -> None:
    values = np.random.default_rng(5).standard_normal(5000)
    var = Var()
    var.update_many(values + 1e9)
    assert var.get() == pytest.approx(values.var(ddof=1), rel=1e-6)


def test_weighted_variance_is_wests_recursion() -> None:
    values, f = np.random.default_rng(6).normal(5, 3, 200), 0.1
    weights = f * (1 - f) ** np.arange(200)[::-1]
    weights[0] /= f  # the first value carries all of the rest
    mean = float((weights * values).sum())
    statistic = EWVar(f)
    statistic.update_many(values)
    assert statistic.mean == pytest.approx(mean, rel=1e-12)
    assert statistic.get() == pytest.approx(float((weights * (values - mean) ** 2).sum()), rel=1e-12)


@given(st.lists(st.tuples(*[st.floats(-100, 100)] * 3), min_size=2, max_size=40), st.integers(0, 40))
def test_covariance_equals_numpy_and_merges(rows: list[tuple[float, ...]], cut: int) -> None:
    array = np.array(rows)
    left, right = Covariance(3), Covariance(3)
    left.update_many(array[:cut])
    right.update_many(array[cut:])
    left.merge(right)
    np.testing.assert_allclose(left.get(), np.cov(array.T), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(left.mean, array.mean(0), rtol=1e-9, atol=1e-9)


def test_covariance_passes_over_a_row_with_a_nan() -> None:
    covariance = Covariance(2)
    covariance.update_many([[1.0, 1.0], [math.nan, 1.0], [2.0, 3.0]])
    covariance.update([3.0, 5.0])
    assert (covariance.count, covariance.ignored) == (3, 1)
    np.testing.assert_allclose(covariance.get(), [[1.0, 2.0], [2.0, 4.0]])
    assert Covariance.from_state(covariance.to_state()).to_state() == covariance.to_state()
    with pytest.raises(InputError, match="rows of 2"):
        covariance.update([1.0])
    assert np.isnan(Covariance(2).get()).all()


@given(st.integers(0, 60), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_feature_block_equals_numpy_with_holes_too(cut: int, holes: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(3, 2, (60, 5))
    if holes:
        rows[rng.random(rows.shape) < 0.1] = math.nan
    rows[0] = 1.0
    left, right, single = FeatureBlock(5, 0.1), FeatureBlock(5, 0.1), FeatureBlock(5, 0.1)
    left.update_many(rows[:cut])
    right.update_many(rows[cut:])
    for row in rows:
        single.update(row)
    left.merge(right)
    for block in (left, single):
        np.testing.assert_array_equal(block.counts, np.isfinite(rows).sum(0))
        np.testing.assert_allclose(block.mean, np.nanmean(rows, 0), rtol=1e-12)
        np.testing.assert_allclose(block.variance, np.nanvar(rows, 0, ddof=1), rtol=1e-10)
        np.testing.assert_array_equal(block.min, np.nanmin(rows, 0))
        np.testing.assert_array_equal(block.max, np.nanmax(rows, 0))
    for j in range(5):
        weighted = EWMean(0.1)
        weighted.update_many(rows[:, j])
        assert single.weighted_mean[j] == pytest.approx(weighted.get(), rel=1e-12)
    assert single.ignored == np.isnan(rows).sum()
    assert FeatureBlock.from_state(single.to_state()).to_state() == single.to_state()


def test_a_feature_block_takes_float32_and_strided_rows_and_refuses_others() -> None:
    rows = np.random.default_rng(7).normal(0, 1, (10, 4)).astype(np.float32)
    a, b = FeatureBlock(4), FeatureBlock(4)
    for row in rows:
        a.update(row)
        b.update(np.repeat(row.astype(np.float64), 2)[::2])
    assert a.to_state() == b.to_state()
    a.update([1, 2, 3, 4])
    for wrong in (np.zeros(3), np.zeros(5, np.float32), "abc", 1.0, np.zeros((2, 2, 2))):
        with pytest.raises(InputError):
            a.update(wrong)
    assert a.rows == 11 and np.isnan(FeatureBlock(2).mean).all()


# distributions --------------------------------------------------------------------------------------------


def test_a_histogram_counts_an_edge_below_it_and_the_rest_outside() -> None:
    histogram = Histogram([0.0, 1.0, 2.0, 3.0])
    histogram.update_many([-5.0, 0.0, 1.0, 1.5, 2.0, 2.1, 99.0])
    assert histogram.get() == (3, 2, 2)


def test_edges_of_equal_frequency() -> None:
    reference = np.random.default_rng(8).lognormal(0, 1, 10_000)
    histogram = Histogram.from_reference(reference, 8)
    histogram.update_many(reference)
    assert histogram.bins == 8 and max(histogram.get()) - min(histogram.get()) <= 1
    assert Histogram.from_reference([0.0] * 50 + [1.0] * 50, 8).edges == (0.0, 0.5, 1.0)
    assert Histogram.from_reference([0.0] * 90 + [1.0] * 10, 4).edges == (0.0, 1.0)


@given(
    st.lists(
        st.one_of(st.floats(-1e6, 1e6), st.floats(-1e-6, 1e-6), st.sampled_from([0.0, 5e-324, 1e-300])), min_size=1
    ),
    st.floats(0, 1),
)
def test_a_quantile_is_within_the_stated_accuracy(values: list[float], q: float) -> None:
    sketch = QuantileSketch(0.01, 1 << 17)
    sketch.update_many(values)
    true = sorted(values)[math.floor(q * (len(values) - 1))]
    assert abs(sketch.quantile(q) - true) <= 0.010000001 * abs(true) + 5e-324
    assert not sketch.collapsed


def test_buckets_are_ddsketchs() -> None:
    # ceil(log(x) / log(gamma)), gamma = 1.01 / 0.99: worked out with mpmath's 50 digits for these values.
    sketch = QuantileSketch(0.01)
    sketch.update_many([1.0, 2.0, 10.0, 12345.678, 1e-3])
    assert [index for index, _ in sketch.items()] == [-345, 0, 35, 116, 472]


def test_a_sketch_stays_bounded_and_says_when_it_collapsed() -> None:
    sketch = QuantileSketch(0.01, 64)
    sketch.update_many(np.geomspace(1e-100, 1e100, 5000))
    assert sketch.collapsed and len(sketch.items()) <= 64 and sketch.count == 5000
    assert sum(count for _, count in sketch.items()) == 5000
    assert sketch.quantile(1.0) == pytest.approx(1e100, rel=0.011)
    sketch.update_many(-np.geomspace(1e-100, 1e100, 5000))
    assert sketch.quantile(0.0) == pytest.approx(-1e100, rel=0.011)
    assert len(sketch.negative_items()) <= 64
    sketch.clear()
    assert sketch.count == 0 and math.isnan(sketch.get()) and sketch.items() == []
    low = QuantileSketch(0.01, 64, 1.0)
    low.update_many([0.5, -0.5, 2.0])
    assert low.zeros == 2
    with pytest.raises(InputError, match="within 0 and 1"):
        sketch.quantile(2.0)


def test_p2_comes_near_the_quantile() -> None:
    values = np.random.default_rng(9).normal(0, 1, 20_000)
    for q in (0.1, 0.5, 0.9):
        p2 = P2Quantile(q)
        p2.update_many(values)
        assert np.mean(values < p2.get()) == pytest.approx(q, abs=0.01)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=80), st.integers(1, 12), st.floats(0, 1))
def test_rolling_ones_equal_numpy_at_every_step(values: list[int], window: int, q: float) -> None:
    extremes, quantile = RollingMinMax(window), RollingQuantile(q, window)
    for index, value in enumerate(values):
        extremes.update(value)
        quantile.update(value)
        newest = values[max(0, index + 1 - window) : index + 1]
        assert extremes.get() == (min(newest), max(newest))
        assert quantile.get() == pytest.approx(float(np.quantile(newest, q)), abs=1e-12)


def test_a_reservoir_is_a_uniform_sample() -> None:
    kept = Counter()
    for seed in range(400):
        reservoir = Reservoir(10, seed)
        reservoir.update_many(np.arange(100))
        sample = reservoir.get()
        assert len(set(sample)) == 10
        kept.update(int(value) // 10 for value in sample)
    # 4,000 draws over ten tenths: chi-square of 9 degrees stays below 27.9 in 99.9 %.
    assert sum((kept[tenth] - 400) ** 2 / 400 for tenth in range(10)) < 27.9


# categories -----------------------------------------------------------------------------------------------

categories = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", 1, 2, b"a"]), max_size=200)


@given(categories, categories)
def test_count_min_never_counts_too_few_and_merges_exactly(left: list[Any], right: list[Any]) -> None:
    a, b, whole = CountMin(16, 3), CountMin(16, 3), CountMin(16, 3)
    a.update_many(left)
    b.update_many(right)
    whole.update_many(left + right)
    a.merge(b)
    assert a.to_state() == whole.to_state()
    for item, count in Counter(left + right).items():
        assert whole.get(item) >= count


@given(categories, categories)
def test_space_saving_keeps_its_bound_merged_too(left: list[Any], right: list[Any]) -> None:
    a, b = SpaceSaving(4), SpaceSaving(4)
    a.update_many(left)
    b.update_many(right)
    for statistic, stream in ((a, left), (b, right)):
        check_bound(statistic, Counter(stream))
    restored = SpaceSaving.from_state(a.to_state())
    a.merge(b)
    check_bound(a, Counter(left + right))
    restored.update_many(right)
    check_bound(restored, Counter(left + right))


def check_bound(statistic: SpaceSaving, true: Counter[Any]) -> None:
    bound = statistic.count / statistic.size
    assert statistic.count == sum(true.values())
    entries = statistic.get()
    for item, count, error in entries:
        assert true[item] <= count <= true[item] + error and error <= bound
    kept = {item for item, _, _ in entries}
    assert all(item in kept for item, count in true.items() if count > bound)


def test_missing_categories_are_counted_apart_and_others_refused() -> None:
    for statistic in (CountMin(), SpaceSaving()):
        statistic.update_many(["a", None, math.nan, "a"])
        assert (statistic.count, statistic.ignored) == (2, 2)
        for wrong in (1.5, [], True, "x" * 5000):
            with pytest.raises(InputError):
                statistic.update(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        CountMin().get(None)  # type: ignore[arg-type]


# what the pipeline keeps ----------------------------------------------------------------------------------


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
