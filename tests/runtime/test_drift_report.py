"""The drift report: tables that load or say why not, measures against scipy, verdicts, and a page that is safe."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2_contingency, false_discovery_control, ks_2samp, kstwobign, wasserstein_distance
from tinylcm.drift import PSI, CategoricalPSI
from tinylcm.drift_report import Feature, compare, holm_adjusted
from tinylcm.errors import ConfigError, InputError


def one(reference: object, current: object, **options: float) -> Feature:
    """The only feature of a comparison."""
    return compare({"x": np.asarray(reference)}, {"x": np.asarray(current)}, **options).features[0]


def ar1(rng: np.random.Generator, phi: float, n: int) -> np.ndarray:
    """A stationary stream of unit variance whose neighbours correlate by `phi`."""
    noise = rng.normal(0, math.sqrt(1 - phi * phi), n)
    noise[0] /= math.sqrt(1 - phi * phi)
    return lfilter([1.0], [1.0, -phi], noise)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(42)


# measures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [12, 1, 0])
def test_ks_and_wasserstein_are_scipys_with_ties_and_unequal_sizes(rng: np.random.Generator, decimals: int) -> None:
    reference, current = rng.normal(0, 1, 700).round(decimals), rng.normal(0.2, 1.3, 431).round(decimals)
    feature = one(reference, current)
    assert feature.ks == pytest.approx(ks_2samp(reference, current).statistic, abs=1e-12)
    assert feature.wasserstein == pytest.approx(wasserstein_distance(reference, current), rel=1e-9)


def test_the_p_value_of_independent_values_is_kolmogorovs(rng: np.random.Generator) -> None:
    feature = one(rng.normal(0, 1, 5000), rng.normal(0.04, 1, 4000))
    n, m = feature.reference.effective, feature.current.effective
    assert n == pytest.approx(5000, rel=0.1) and m == pytest.approx(4000, rel=0.1)
    assert feature.p == pytest.approx(kstwobign.sf(math.sqrt(n * m / (n + m)) * feature.ks), rel=0.05)


@pytest.mark.parametrize("n", [40, 1000, 20_000])
def test_psi_is_the_detectors_and_js_scipys(rng: np.random.Generator, n: int) -> None:
    feature = one(rng.normal(0, 1, n), current := rng.normal(0.4, 1.5, 500))
    pair = feature.histogram
    detector = PSI(pair.edges, pair.reference, window=500, smoothing=0.5, threshold=1e9)
    detector.update_many(current)
    assert len(pair.reference) == 20 and pair.current == detector.histogram.current
    assert feature.psi == pytest.approx(detector.statistic, rel=1e-9)
    assert feature.js == pytest.approx(jensenshannon(pair.reference, pair.current, base=2), rel=1e-9)


def test_bins_hold_equal_shares_and_the_outermost_take_the_rest() -> None:
    feature = one(np.arange(1000.0), np.array([-1e6, 1e6, 1e6]))
    assert feature.histogram.reference == (50.0,) * 20
    assert feature.histogram.current == (1.0, *[0.0] * 18, 2.0)
    assert feature.histogram.edges[0] == 0 and feature.histogram.edges[-1] == 999


def test_few_distinct_numbers_stay_numbers_with_a_bin_each(rng: np.random.Generator) -> None:
    reference, current = rng.integers(3, 8, 900), rng.integers(4, 9, 800)
    feature = one(reference, current)
    assert feature.kind == "number" and feature.histogram.labels == ("3", "4", "5", "6", "7")
    assert feature.histogram.reference == tuple(float((reference == value).sum()) for value in range(3, 8))
    assert feature.histogram.current[-1] == (current >= 7).sum()
    detector = PSI(feature.histogram.edges, feature.histogram.reference, window=800, threshold=1e9)
    detector.update_many(current)
    assert feature.psi == pytest.approx(detector.statistic, rel=1e-9)


def test_a_constant_that_stays_is_no_drift_and_one_that_moves_is() -> None:
    assert one(np.full(100, 0.1), np.full(100, 0.1)).verdict == "no drift"
    moved = one(np.full(100, 5.0), np.full(100, 5.0001))
    assert moved.verdict == "drift" and moved.ks == 1 and moved.js == 1 and moved.psi > 1
    assert moved.histogram.reference == (0, 100, 0) and moved.histogram.current == (0, 0, 100)


def test_statistics_of_each_side_leave_out_what_is_missing() -> None:
    values = np.array([1.0, np.nan, 4.0, np.inf, 2.0, 9.0, -np.inf])
    side = one(values, np.arange(50.0)).reference
    assert (side.count, side.missing) == (4, 3)
    assert (side.mean, side.min, side.median, side.max) == (4.0, 1.0, 3.0, 9.0)
    assert side.std == pytest.approx(np.std([1, 4, 2, 9], ddof=1))


@given(st.lists(st.floats(width=64), max_size=40), st.lists(st.floats(width=64), max_size=40))
def test_any_floats_give_a_report_without_nan(reference: list[float], current: list[float]) -> None:
    report = compare({"x": np.array(reference, float)}, {"x": np.array(current, float)})
    json.dumps(report.to_json(), allow_nan=False)
    assert "nan" not in report.to_html() and "inf<" not in report.to_html()


def test_categories_are_compared_by_chi_square_and_the_detectors_psi(rng: np.random.Generator) -> None:
    names = np.array(["sit", "walk", "run"])
    reference = names[rng.choice(3, 3000, p=[0.5, 0.3, 0.2])]
    current = names[rng.choice(3, 2000, p=[0.4, 0.35, 0.25])]
    feature = one(reference, current)
    pair = feature.histogram
    assert feature.kind == "category" and pair.labels == ("sit", "walk", "run") and pair.edges == ()
    left, right = feature.reference, feature.current
    table = [np.array(pair.reference) * left.effective / 3000, np.array(pair.current) * right.effective / 2000]
    assert left.effective > 2500
    assert feature.p == pytest.approx(chi2_contingency(table, correction=False).pvalue, rel=1e-9)
    detector = CategoricalPSI(pair.reference, window=2000, threshold=1e9)
    detector.update_many([pair.labels.index(value) for value in current])
    assert feature.psi == pytest.approx(detector.statistic, rel=1e-9)
    assert feature.js == pytest.approx(jensenshannon(pair.reference, pair.current, base=2), rel=1e-9)
    assert feature.ks is None and feature.wasserstein is None


def test_a_new_frequent_category_is_seen_and_many_rare_ones_are_not_drift(rng: np.random.Generator) -> None:
    reference = rng.integers(0, 40, 3000).astype(str)
    same = one(reference, rng.integers(0, 40, 3000).astype(str))
    assert same.verdict == "no drift" and len(same.histogram.labels) == 21
    assert same.histogram.labels[-1] == "20 others" and same.reference.distinct == 40
    renamed = one(reference, np.where(rng.random(3000) < 0.3, "error", reference))
    assert renamed.verdict == "drift" and renamed.histogram.labels[0] == "error"
    identifiers = [np.array([f"{side}-{i}" for i in range(500)]) for side in "ab"]
    assert "identifier" in one(*identifiers).notes[-1]


def test_rare_categories_are_pooled_before_the_test() -> None:
    reference, current = ["a"] * 500 + ["b"] * 500 + ["r"] * 2, ["a"] * 250 + ["b"] * 250 + ["q", "s"]
    shuffled = [np.random.default_rng(3).permutation(values) for values in (reference, current)]
    feature = one(*shuffled)
    scale = [feature.reference.effective / 1002, feature.current.effective / 502]
    table = [[500 * scale[0], 500 * scale[0], 2 * scale[0]], [250 * scale[1], 250 * scale[1], 2 * scale[1]]]
    assert feature.p == pytest.approx(chi2_contingency(table, correction=False).pvalue, rel=1e-6)


def test_booleans_are_categories_and_a_column_without_values_fits_either_kind() -> None:
    flags = np.tile([True, False, False], 50)
    assert one(flags, flags).kind == "category"
    empty = np.full(150, np.nan)
    for column in (flags, np.arange(150.0)):
        assert one(column, empty).verdict == one(empty, column).verdict == "too little data"


# effective sizes and verdicts -----------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_the_effective_size_of_an_autoregression_is_near_its_theory(rng: np.random.Generator, phi: float) -> None:
    sizes = [one(ar1(rng, phi, 20_000), np.zeros(20)).reference.effective for _ in range(5)]
    assert np.median(sizes) == pytest.approx(20_000 * (1 - phi) / (1 + phi), rel=0.2)


def test_the_effective_size_is_never_above_n_nor_below_2(rng: np.random.Generator) -> None:
    alternating = np.tile([1.0, -1.0], 500) + rng.normal(0, 0.1, 1000)
    assert one(alternating, np.arange(1000.0)).reference.effective <= 1000
    assert 2 <= one(np.arange(1000.0), alternating).reference.effective < 20
    bursts = rng.normal(0, 1, 20_000) * np.repeat(rng.choice([0.1, 3.0], 200), 100)
    assert one(bursts, bursts).reference.effective < 2000  # uncorrelated, but not independent


def test_autocorrelated_streams_of_one_distribution_are_not_called_drift(rng: np.random.Generator) -> None:
    pairs = [(ar1(rng, 0.97, 10_000), ar1(rng, 0.97, 10_000)) for _ in range(40)]
    naive = sum(ks_2samp(a, b).pvalue < 0.05 for a, b in pairs)
    found = sum(one(a, b).verdict in ("drift", "changed slightly") for a, b in pairs)
    assert naive > 30 and found <= 4
    together = compare({str(i): a for i, (a, _) in enumerate(pairs)}, {str(i): b for i, (_, b) in enumerate(pairs)})
    assert together.verdict == "no drift"


def test_categories_that_last_are_not_called_drift(rng: np.random.Generator) -> None:
    def stream() -> np.ndarray:
        return np.repeat(rng.choice(["sit", "walk", "run"], 100), 100)

    pairs = [(stream(), stream()) for _ in range(20)]
    naive = [chi2_contingency([[(s == c).sum() for c in ("sit", "walk", "run")] for s in p]).pvalue for p in pairs]
    assert sum(p < 0.05 for p in naive) > 15
    assert sum(one(a, b).p < 0.05 for a, b in pairs) <= 3


def test_independent_streams_that_shift_by_half_a_deviation_are_drift(rng: np.random.Generator) -> None:
    reference = {f"f{i}": rng.normal(0, 1, 1000) for i in range(20)}
    current = {name: rng.normal(0.5 * (name in ("f3", "f11")), 1, 1000) for name in reference}
    report = compare(reference, current)
    assert report.verdict == "drift" and report.drifted == ("f3", "f11")
    assert [feature.name for feature in report.by_severity()[:2]] in (["f3", "f11"], ["f11", "f3"])
    assert compare({"a": reference["f3"]}, {"a": current["f11"] * 0 + 9}).features[0].verdict == "drift"


def test_a_significant_but_small_change_is_only_slight(rng: np.random.Generator) -> None:
    report = compare({"x": rng.normal(0, 1, 50_000)}, {"x": rng.normal(0.06, 1, 50_000)})
    assert report.verdict == report.features[0].verdict == "changed slightly" and report.drifted == ()


def test_too_little_data_is_no_verdict(rng: np.random.Generator) -> None:
    few = one(rng.normal(0, 1, 1000), rng.normal(9, 1, 19))
    assert few.verdict == "too little data" and few.p_adjusted < 0.05
    assert one([], [1.0]).p is None
    stepping = one(rng.normal(0, 1, 2000), np.concatenate([rng.normal(0, 1, 1000), rng.normal(8, 1, 1000)]))
    assert stepping.verdict == "too little data" and "step or wander" in stepping.notes[0]


def test_a_change_of_missing_values_is_noted(rng: np.random.Generator) -> None:
    current = np.where(rng.random(1000) < 0.2, np.nan, rng.normal(0, 1, 1000))
    report = compare({"x": rng.normal(0, 1, 1000)}, {"x": current})
    assert report.features[0].notes[0].startswith("The share of missing values went from 0.0% to ")
    assert "Share of missing values changed" in report.to_html()


def test_features_of_one_side_are_reported_and_progress_is_told() -> None:
    steps: list[tuple[int, int]] = []
    column = np.arange(50.0)
    report = compare(
        {"a": column, "gone": column, "b": column}, {"b": column, "new": column[:9], "a": column},
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert (report.missing, report.new) == (("gone",), ("new",)) and steps == [(1, 2), (2, 2)]
    assert [feature.name for feature in report.features] == ["a", "b"] and report.reference_rows == 50
    apart = compare({"a": column}, {"b": column})
    assert apart.verdict == "too little data" and "no feature in common" in apart.to_html()


def test_holm_controls_all_features_together() -> None:
    assert holm_adjusted([0.01, None, 0.04, 0.03]) == [0.03, None, 0.06, 0.06]
    assert holm_adjusted([0.9, 0.8, 0.5]) == [1.0, 1.0, 1.0] and holm_adjusted([]) == []
    p_values = np.random.default_rng(1).random(50) ** 3
    assert np.all(np.array(holm_adjusted(list(p_values))) >= false_discovery_control(p_values) - 1e-12)
    expected = [
        min(1.0, max(p_values[p_values <= p] * (50 - np.arange((p_values <= p).sum())))) for p in [min(p_values)]
    ]
    assert min(holm_adjusted(list(p_values))) == pytest.approx(expected[0])


def test_columns_that_cannot_be_compared_are_refused() -> None:
    numbers = np.arange(3.0)
    with pytest.raises(InputError, match=r"'x'.*text such as 'error' in the current one"):
        one(numbers, np.array(["1", "", "error"]))
    with pytest.raises(InputError, match="in one dimension"):
        one(numbers, np.zeros((3, 1)))
    with pytest.raises(InputError, match="expected numbers or text"):
        one(numbers, np.array([None, 1, 2]))
    with pytest.raises(InputError, match="no features"):
        compare({}, {"x": numbers})
    for alpha in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match="alpha"):
            one(numbers, numbers, alpha=alpha)
