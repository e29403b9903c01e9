"""Detectors against their oracles: river's decisions exactly, scipy's and numpy's values."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import river.drift
from scipy.stats import ks_2samp
from tinylcm.drift import ADWIN, PSI, BinnedKS, CategoricalPSI, Mahalanobis, PageHinkley
from tinylcm.errors import ConfigError

CASES = json.loads((Path(__file__).parent.parent / "data" / "drift_river.json").read_text())["cases"]
OURS = {"ADWIN": ADWIN, "PageHinkley": PageHinkley}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["detector"] in OURS], ids=lambda case: str(case["params"])
)
def test_the_decisions_are_rivers_on_the_committed_vectors(case: dict) -> None:
    detector = OURS[case["detector"]](**case["params"])
    assert [index for index, value in enumerate(case["values"]) if detector.update(value)] == case["drift_at"]


def stream(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(mean, abs(rng.normal()) + 0.1, 500) for mean in rng.normal(0, 1, 4)])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "params", [{}, {"clock": 1, "delta": 0.05}, {"clock": 1, "max_buckets": 3, "min_window_length": 3}]
)
def test_adwin_is_rivers_bit_for_bit(seed: int, params: dict) -> None:
    ours, theirs = ADWIN(**params), river.drift.ADWIN(**params)
    for value in stream(seed):
        theirs.update(value)
        assert ours.update(value) == theirs.drift_detected
        assert (ours.width, ours.total, ours.variance) == (theirs.width, theirs.total, theirs.variance)


@pytest.mark.parametrize("mode", ["up", "down", "both"])
@pytest.mark.parametrize("seed", range(5))
def test_page_hinkley_decides_as_river(seed: int, mode: str) -> None:
    ours = PageHinkley(threshold=10, mode=mode)  # type: ignore[arg-type]
    theirs = river.drift.PageHinkley(threshold=10, mode=mode)
    for value in stream(seed):
        theirs.update(value)
        assert ours.update(value) == theirs.drift_detected


def test_page_hinkley_names_where_the_change_began() -> None:
    detector = PageHinkley(threshold=5, delta=0.1)
    values = [0.0] * 100 + [1.0] * 20
    alarms = [index for index, value in enumerate(values) if detector.update(value)]
    assert 100 < alarms[0] < 110
    assert 95 <= detector.suspect <= 101


@pytest.mark.parametrize("detector", [ADWIN(clock=1), PageHinkley()])
def test_nan_and_infinity_are_passed_over(detector: ADWIN | PageHinkley) -> None:
    for value in (0.5, math.nan, math.inf, -math.inf, 0.5):
        assert detector.update(value) is False
    assert math.isfinite(detector.statistic)


def test_binned_ks_equals_scipy_at_the_bin_edges() -> None:
    rng = np.random.default_rng(4)
    # float32, as the detector sees values: a value on an edge must be on it for both sides.
    reference, current = (
        rng.normal(mean, 1, count).round(1).astype(np.float32).astype(float) for mean, count in ((0, 1000), (0.3, 500))
    )
    edges = np.unique(reference)
    counts = [np.sum((reference > low) & (reference <= high)) for low, high in itertools.pairwise(edges)]
    counts[0] += np.sum(reference == edges[0])
    detector = BinnedKS([edges], [counts], threshold=0.99, window=500)
    detector.update(current[:, None])
    # With the bins at every value of the reference, only values of the current sample in between can differ.
    clipped = np.clip(current, edges[1], edges[-1])
    inside = np.array([edges[np.searchsorted(edges, value, side="left")] for value in clipped])
    expected = ks_2samp(np.maximum(reference, edges[1]), inside).statistic
    assert detector.statistic == pytest.approx(expected, abs=1e-12)


def test_psi_equals_the_formula_at_every_step() -> None:
    rng = np.random.default_rng(5)
    reference, window, smoothing = np.array([50.0, 30.0, 20.0]), 40, 0.5
    detector = CategoricalPSI(reference, threshold=99, window=window, smoothing=smoothing)
    values = rng.integers(0, 3, 500)
    for index, value in enumerate(values):
        detector.update(int(value))
        if index + 1 < window:
            assert math.isnan(detector.statistic)
            continue
        counts = np.bincount(values[index + 1 - window : index + 1], minlength=3)
        p = (counts + smoothing) / (window + 3 * smoothing)
        q = (reference / reference.sum() * window + smoothing) / (window + 3 * smoothing)
        assert detector.statistic == pytest.approx(float(((p - q) * np.log(p / q)).sum()), abs=1e-12)


def test_numeric_psi_bins_as_numpy_and_passes_nan_over() -> None:
    detector = PSI([0, 1, 2, 3], [10, 10, 10], threshold=9, window=4)
    for value in (-5.0, 1.0, 1.5, 99.0, math.nan):
        detector.update(value)
    assert detector.histogram.current == (2.0, 1.0, 1.0)


def test_mahalanobis_equals_numpy_over_a_long_stream() -> None:
    rng = np.random.default_rng(6)
    mean, std = np.array([1.0, -2.0, 5.0]), np.array([0.5, 2.0, 1.0])
    correlation = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 1.0]])
    detector = Mahalanobis(mean, std, correlation, threshold=99, window=20, shrinkage=0.1)
    rows = rng.normal(size=(2015, 3)) * std + mean
    for row in rows:
        detector.update(row)
    m = ((rows[-20:] - mean) / std).mean(0)
    inverse = np.linalg.inv(0.9 * correlation + 0.1 * np.eye(3))
    assert detector.statistic == pytest.approx(math.sqrt(m @ inverse @ m), rel=1e-9)


def test_an_alarm_is_raised_once_and_armed_again_when_it_has_calmed() -> None:
    detector = CategoricalPSI([50, 50], threshold=0.2, window=20)
    calm, off = [0, 1] * 30, [0] * 40
    alarms = [index for index, value in enumerate(calm + off + calm + off) if detector.update(value)]
    assert len(alarms) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: ADWIN(delta=0),
        lambda: ADWIN(clock=0),
        lambda: PageHinkley(alpha=2),
        lambda: PageHinkley(threshold=0),
        lambda: PageHinkley(mode="sideways"),  # type: ignore[arg-type]
        lambda: CategoricalPSI([0, 0]),
        lambda: CategoricalPSI([1, -1]),
        lambda: CategoricalPSI([1, 1], threshold=0),
        lambda: CategoricalPSI([1, 1], window=0),
        lambda: PSI([0, 0, 1], [1, 1]),
        lambda: BinnedKS([[0, 1, 2]], [[1, 1]], threshold=1.5),
        lambda: BinnedKS([[0, 1]], [[1, 1]], threshold=0.5),
        lambda: BinnedKS([], [], threshold=0.5),
        lambda: Mahalanobis([0.0], [0.0], None, threshold=1),
        lambda: Mahalanobis([0.0, 0.0], [1.0, 1.0], [[1.0]], threshold=1),
        lambda: Mahalanobis([0.0, 0.0], [1.0, 1.0], [[1.0, 0.5], [0.1, 1.0]], threshold=1),
    ],
)
def test_parameters_out_of_range_are_refused(make) -> None:
    with pytest.raises(ConfigError):
        make()


def test_every_detector_forgets_on_reset() -> None:
    psi, ks = CategoricalPSI([1, 1], window=2), BinnedKS([[0, 1, 2]], [[1, 1]], threshold=0.4, window=2)
    distance = Mahalanobis([0.0], [1.0], None, threshold=1, window=2)
    for _ in range(3):
        psi.update(0)
        ks.update(np.array([[0.5]]))
        distance.update(np.array([9.0]))
    for detector in (psi, ks, distance):
        detector.reset()
        assert math.isnan(detector.statistic)
