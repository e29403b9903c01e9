"""Detectors against their oracles: river's decisions exactly, scipy's and numpy's values, one life cycle for all."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import river.drift
import river.drift.binary
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import gammaincc
from scipy.stats import chi2, chi2_contingency, ks_2samp, kstwo, wasserstein_distance
from tinylcm import drift
from tinylcm._ext.windowed import kolmogorov, upper_gamma
from tinylcm.drift import (
    ADWIN,
    CUSUM,
    DDM,
    EDDM,
    FHDDM,
    HDDMA,
    HDDMW,
    KSWIN,
    MMD,
    PSI,
    BinnedKS,
    CategoricalPSI,
    ChiSquare,
    EWMAChart,
    FeatureDrift,
    HotellingT2,
    IncrementalKS,
    JensenShannon,
    KNNDistance,
    Limit,
    Mahalanobis,
    PageHinkley,
    Wasserstein1,
)
from tinylcm.errors import ConfigError, InputError

CASES = json.loads((Path(__file__).parent.parent / "data" / "drift_river.json").read_text())["cases"]
RNG = np.random.default_rng(20)
REFERENCE = RNG.normal(0, 1, 300)
ROWS = RNG.normal(0, 1, (300, 3))

SCALAR: dict[str, Callable[[], Any]] = {
    "ADWIN": lambda: ADWIN(delta=0.3, clock=1),
    "PageHinkley": lambda: PageHinkley(threshold=5),
    "KSWIN": lambda: KSWIN(alpha=0.01, window_size=40, stat_size=15, seed=3),
    "PSI": lambda: PSI.from_reference(REFERENCE, 8, threshold=0.3, window=20),
    "PSI learned": lambda: PSI(threshold=0.3, window=20, warm_up=50),
    "PSI rebased": lambda: PSI(threshold=0.3, window=20, warm_up=50, policy="rebase"),
    "JensenShannon": lambda: JensenShannon.from_reference(REFERENCE, 8, threshold=0.3, window=20),
    "IncrementalKS": lambda: IncrementalKS(REFERENCE, threshold=0.3, window=20),
    "IncrementalKS learned": lambda: IncrementalKS(threshold=0.3, window=20, warm_up=50),
    "IncrementalKS rebased": lambda: IncrementalKS(threshold=0.3, window=20, warm_up=50, policy="rebase"),
    "Wasserstein1": lambda: Wasserstein1(REFERENCE, threshold=0.5, window=20),
    "Wasserstein1 learned": lambda: Wasserstein1(threshold=0.5, window=20, warm_up=50, policy="reset"),
    "CUSUM": lambda: CUSUM(0.0, 1.0, threshold=4),
    "CUSUM learned": lambda: CUSUM(threshold=4, warm_up=50, policy="rebase"),
    "Limit": lambda: Limit(1.2, 3),
    "EWMAChart": lambda: EWMAChart(0.0, 1.0, threshold=2.5),
    "EWMAChart learned": lambda: EWMAChart(threshold=2.5, warm_up=50, policy="latch"),
}
BINARY: dict[str, Callable[[], Any]] = {
    "DDM": DDM,
    "EDDM": EDDM,
    "HDDMA": lambda: HDDMA(two_sided_test=True),
    "HDDMW": lambda: HDDMW(two_sided_test=True),
    "FHDDM": lambda: FHDDM(50, 0.01, 20),
}
COUNTED: dict[str, Callable[[], Any]] = {
    "CategoricalPSI": lambda: CategoricalPSI([5, 3, 2], threshold=0.4, window=20, labels=["a", "b", "c"]),
    "CategoricalPSI learned": lambda: CategoricalPSI(3, threshold=0.4, window=20, warm_up=50, policy="rebase"),
    "ChiSquare": lambda: ChiSquare([50, 30, 20], threshold=9, window=20),
}
VECTOR: dict[str, Callable[[], Any]] = {
    "Mahalanobis": lambda: Mahalanobis([0.0] * 3, [1.0] * 3, None, threshold=1, window=10),
    "HotellingT2": lambda: HotellingT2([0.0] * 3, [1.0] * 3, np.eye(3), threshold=12, window=10, policy="reset"),
    "KNNDistance": lambda: KNNDistance(ROWS, threshold=6),
    "MMD": lambda: MMD(ROWS, threshold=0.3, window=15, components=30),
    "BinnedKS": lambda: BinnedKS([[-3.0, 0.0, 3.0]] * 3, [[5, 5]] * 3, threshold=0.3, window=15),
    "FeatureDrift": lambda: FeatureDrift.from_reference(ROWS, 6, window=25, level=4, spread=4, shape=0.3, joint=4),
}
EVERY = SCALAR | BINARY | COUNTED | VECTOR


def stream_for(name: str, seed: int, n: int = 400) -> np.ndarray:
    """A stream that alarms now and then: half-way and three quarters on, it changes."""
    rng = np.random.default_rng(seed)
    change = np.where(np.arange(n) < n // 2, 0.0, np.where(np.arange(n) < 3 * n // 4, 1.5, -1.0))
    if name in BINARY:
        return (rng.random(n) < np.where(change == 0, 0.9 if name == "FHDDM" else 0.2, 0.5)).astype(float)
    if name in COUNTED:
        return np.where(change == 0, rng.choice(3, n, p=[0.5, 0.3, 0.2]), rng.choice(3, n, p=[0.1, 0.1, 0.8])).astype(
            float
        )
    if name in VECTOR:
        return rng.normal(0, 1, (n, 3)) + change[:, None]
    return rng.normal(0, 1, n) + change


# every one ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_a_restart_changes_nothing_bit_for_bit(name: str) -> None:
    values = stream_for(name, 1)
    for cut in (0, 5, 60, 199, 230, 330):
        first = EVERY[name]()
        first.update_many(values[:cut])
        second = type(first).from_state(first.to_state())
        assert second.to_state() == first.to_state() and second.phase == first.phase
        assert first.update_many(values[cut:]) == second.update_many(values[cut:])
        assert second.to_state() == first.to_state()
        assert copy.deepcopy(first).to_state() == first.to_state()


@pytest.mark.parametrize("name", EVERY)
def test_a_block_is_the_same_as_single_values(name: str) -> None:
    values = stream_for(name, 2)
    one, many = EVERY[name](), EVERY[name]()
    alarms, suspects = [], []
    for index, value in enumerate(values):
        if one.update(value):
            alarms.append(index)
            suspects.append(one.suspect)
            assert one.phase == "alarm" and one.drift_detected
            assert one.statistic >= one.threshold or name in ("DDM", "FHDDM")
    assert many.update_many(values) == alarms and len(alarms) >= 1
    assert many.to_state() == one.to_state()
    assert one.n_detections == len(alarms) and one.index == len(values)
    assert all(0 <= suspect <= alarm for suspect, alarm in zip(suspects, alarms, strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_nan_and_infinity_are_passed_over_and_counted(name: str) -> None:
    values = stream_for(name, 3)
    holes = np.repeat(values, 2, axis=0)
    holes[1::2] = np.resize([math.nan, math.inf, -math.inf, 1e300], holes[1::2].shape)
    clean, holed = EVERY[name](), EVERY[name]()
    assert [2 * index for index in clean.update_many(values)] == holed.update_many(holes)
    assert holed.ignored == len(values) and holed.seen == clean.seen
    np.testing.assert_equal(holed.statistic, clean.statistic)


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=40)
@given(data=st.data())
def test_any_stream_at_all_is_survived(name: str, data: st.DataObject) -> None:
    floats = st.one_of(
        st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0.0, 1.0, 2.0, 5e-324, 1e139, -1e139])
    )
    if name in VECTOR:
        floats = st.tuples(floats, floats, floats)  # type: ignore[assignment]
    detector = EVERY[name]()
    for value in data.draw(st.lists(floats, max_size=120)):
        assert detector.update(value) in (True, False)
    again = type(detector).from_state(detector.to_state())
    assert again.to_state() == detector.to_state()


@pytest.mark.parametrize("name", EVERY)
def test_reset_begins_a_new_test(name: str) -> None:
    values = stream_for(name, 4)
    detector, fresh = EVERY[name](), EVERY[name]()
    if "learned" in name or "rebased" in name:
        fresh.update_many(values[:50] if name != "PSI rebased" else values[:0])
    detector.update_many(values[:220])
    detector.reset()
    assert detector.phase in ("warm-up", "armed") and not detector.drift_detected
    if name not in ("KSWIN",) and "learned" not in name and "rebased" not in name:
        assert detector.update_many(values[200:]) == fresh.update_many(values[200:])


@pytest.mark.parametrize("name", EVERY)
def test_a_damaged_state_is_refused(name: str) -> None:
    detector = EVERY[name]()
    detector.update_many(stream_for(name, 5)[:120])
    kind, state = type(detector), detector.to_state()
    document = msgpack.unpackb(state)
    bad: list[Any] = [b"", state[:-1], state + b"x", None]
    for index in range(len(document[3])):
        for wrong in (None, "x", -1, []):
            fields = [*document[3]]
            fields[index] = wrong
            bad.append(msgpack.packb([*document[:3], fields]))
    for wrong in bad:
        with pytest.raises(InputError):
            kind.from_state(wrong)
    own = document[3][5]
    rng = np.random.default_rng(6)
    for index, wrong in itertools.product(range(len(own)), (None, "x", -1, 1 << 40, b"1", [], math.nan, True)):
        fields = [*own[:index], wrong, *own[index + 1 :]]
        survive(kind, msgpack.packb([*document[:3], [*document[3][:5], fields]]), name)
    for _ in range(200):
        torn = bytearray(state)
        torn[rng.integers(len(torn))] ^= rng.integers(1, 256)
        survive(kind, bytes(torn), name)


def survive(kind: Any, state: bytes, name: str) -> None:
    """Refused, or taken and usable without harm to the process."""
    try:
        detector = kind.from_state(state)
    except InputError:
        return
    values = stream_for(name, 6, 100)
    if name in VECTOR and detector.d != 3:
        return
    detector.update_many(values)
    detector.to_state()


@pytest.mark.parametrize("name", [*SCALAR, *BINARY, *COUNTED])
def test_wrong_values_are_refused(name: str) -> None:
    detector = EVERY[name]()
    for wrong in ("x", [1.0]):
        with pytest.raises(TypeError):
            detector.update(wrong)
    for block in (1.0, [[1.0]], "x"):
        with pytest.raises(InputError):
            detector.update_many(block)
    assert detector.index == 0


@pytest.mark.parametrize("name", VECTOR)
def test_rows_of_another_shape_are_refused(name: str) -> None:
    detector = VECTOR[name]()
    for wrong in (np.zeros(2), np.zeros((2, 2, 2)), 1.0):
        with pytest.raises(InputError):
            detector.update(wrong)
    with pytest.raises(InputError):
        detector.update_many(np.zeros((5, 4)))
    detector.update(np.zeros(3, np.float32))
    detector.update([0, 0, 0])
    assert detector.index == 2


def test_every_detector_is_tested_here() -> None:
    tested = {type(make()).__name__ for make in EVERY.values()}
    assert tested == set(drift.__all__) - {"Detector", "preset"}


# river's decisions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['detector']} {case['params']}")
def test_the_decisions_are_rivers_on_the_committed_vectors(case: dict[str, Any]) -> None:
    detector = getattr(drift, case["detector"])(**case["params"])
    drifts, warnings = [], []
    for index, value in enumerate(case["values"]):
        if detector.update(value):
            drifts.append(index)
        if detector.warning_detected:
            warnings.append(index)
    assert drifts == case["drift_at"]
    if case.get("warnings") is not None and case["detector"] not in ("ADWIN", "PageHinkley"):
        assert len(warnings) == case["warnings"]
    again = getattr(drift, case["detector"])(**case["params"])
    assert again.update_many(case["values"]) == case["drift_at"]


def stream(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(mean, abs(rng.normal()) + 0.1, 500) for mean in rng.normal(0, 1, 4)])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "params", [{}, {"clock": 1, "delta": 0.05}, {"clock": 1, "max_buckets": 3, "min_window_length": 3}]
)
def test_adwin_is_rivers_bit_for_bit(seed: int, params: dict[str, Any]) -> None:
    ours, theirs = ADWIN(**params), river.drift.ADWIN(**params)
    for offset in (0.0, 1e6):  # a mean that is large beside the spread: where screening must not decide otherwise
        for value in stream(seed) + offset:
            theirs.update(value)
            assert ours.update(value) == theirs.drift_detected
            assert (ours.width, ours.total, ours.variance) == (theirs.width, theirs.total, theirs.variance)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e30])
def test_adwins_screen_never_decides_otherwise(scale: float) -> None:
    rng = np.random.default_rng(7)
    for offset in (0.0, 1.0, 1e9):
        ours, theirs = ADWIN(delta=0.5, clock=1), river.drift.ADWIN(delta=0.5, clock=1)
        for value in np.cumsum(rng.normal(0, 0.05, 1500)) * scale + offset:
            theirs.update(value)
            assert ours.update(value) == theirs.drift_detected


@pytest.mark.parametrize("mode", ["up", "down", "both"])
@pytest.mark.parametrize("seed", range(5))
def test_page_hinkley_decides_as_river(seed: int, mode: str) -> None:
    ours = PageHinkley(threshold=10, mode=mode)  # type: ignore[arg-type]
    theirs = river.drift.PageHinkley(threshold=10, mode=mode)
    for value in stream(seed):
        theirs.update(value)
        assert ours.update(value) == theirs.drift_detected


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("ours", "theirs", "params"),
    [
        (DDM, river.drift.binary.DDM, {}),
        (DDM, river.drift.binary.DDM, {"warm_start": 5, "drift_threshold": 2.2, "warning_threshold": 1.5}),
        (EDDM, river.drift.binary.EDDM, {}),
        (EDDM, river.drift.binary.EDDM, {"warm_start": 10, "alpha": 0.99, "beta": 0.95}),
        (HDDMA, river.drift.binary.HDDMA, {}),
        (HDDMA, river.drift.binary.HDDMA, {"two_sided_test": True, "drift_confidence": 0.05}),
        (HDDMW, river.drift.binary.HDDMW, {}),
        (HDDMW, river.drift.binary.HDDMW, {"two_sided_test": True, "lambda_val": 0.2, "drift_confidence": 0.05}),
        (FHDDM, river.drift.binary.FHDDM, {}),
        (FHDDM, river.drift.binary.FHDDM, {"sliding_window_size": 30, "confidence_level": 0.05}),
        (FHDDM, river.drift.binary.FHDDM, {"short_window_size": 25, "confidence_level": 0.01}),
    ],
)
def test_error_rate_detectors_decide_as_river(ours: Any, theirs: Any, params: dict[str, Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = ours(**params), theirs(**params)
    rate = np.repeat(rng.uniform(0.02, 0.6, 12), 250)
    for value in (rng.random(3000) < rate).astype(int):
        b.update(int(value))
        assert (a.update(value), a.warning_detected) == (b.drift_detected, b.warning_detected)


def test_error_rates_take_only_errors() -> None:
    for detector in (DDM(), HDDMA(), HDDMW(), FHDDM()):
        detector.update_many([0, 1, -1, 2, 0])
        assert detector.ignored == 2


def test_kswin_has_rivers_p_values_and_rates() -> None:
    p_values = KSWIN(alpha=0.01, window_size=60, stat_size=30)
    rng = np.random.default_rng(8)
    for value in rng.normal(0, 1, 60):
        p_values.update(value)
    assert p_values.p_value == pytest.approx(
        float(ks_2samp(np.arange(30), np.arange(30) + p_values.statistic * 30 - 0.5, method="exact").pvalue), rel=1e-9
    )
    ours, theirs = [], []
    for seed in range(30):
        values = np.concatenate([rng.normal(0, 1, 200), rng.normal(1.0, 1, 100)])
        a, b = KSWIN(alpha=0.001, seed=seed), river.drift.KSWIN(alpha=0.001, seed=seed)
        ours.append(next(iter(a.update_many(values)), 300))
        found = 300
        for index in range(180, 300):  # both need 100 values; river takes 0.3 ms a value
            if index == 180:
                b = river.drift.KSWIN(alpha=0.001, seed=seed, window=list(values[80:180]))
            b.update(float(values[index]))
            if b.drift_detected:
                found = index
                break
        theirs.append(found)
    assert abs(np.median(ours) - np.median(theirs)) <= 10


def test_page_hinkley_names_where_the_change_began() -> None:
    detector = PageHinkley(threshold=5, delta=0.1)
    values = [0.0] * 100 + [1.0] * 20
    alarms = [index for index, value in enumerate(values) if detector.update(value)]
    assert 100 < alarms[0] < 110
    assert 95 <= detector.suspect <= 101


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


def test_psi_of_a_learned_reference_has_bins_of_equal_frequency() -> None:
    values = np.random.default_rng(9).gamma(2, 1, 600)
    detector = PSI(threshold=9, window=100, bins=8, warm_up=400)
    detector.update_many(values)
    assert detector.histogram is not None and detector.phase == "armed"
    counts, edges = np.array(detector.histogram.reference), np.array(detector.histogram.edges)
    assert counts.tolist() == [50] * 8
    np.testing.assert_array_equal(edges[[0, -1]], [values[:400].min(), values[:400].max()])
    current = np.array(detector.histogram.current)
    p, q = (current + 0.5) / 104, (counts / 4 + 0.5) / 104
    assert detector.statistic == pytest.approx(float(((p - q) * np.log(p / q)).sum()), abs=1e-12)


def test_a_constant_signal_is_learned_again_until_it_varies() -> None:
    for detector in (PSI(warm_up=50, threshold=9), CUSUM(warm_up=50), EWMAChart(warm_up=50, threshold=9)):
        detector.update_many(np.full(500, 7.0))
        assert detector.phase == "warm-up"
        detector.update_many(np.random.default_rng(10).normal(7, 1, 500))
        assert detector.phase in ("armed", "warning")


def test_jensen_shannon_is_scipys_at_every_step() -> None:
    rng = np.random.default_rng(11)
    reference = rng.normal(0, 1, 500)
    detector = JensenShannon.from_reference(reference, 10, threshold=0.999, window=40)
    assert detector.histogram is not None
    edges = np.array(detector.histogram.edges)
    for value in rng.normal(0.5, 2, 300):
        detector.update(value)
        assert detector.histogram is not None
        p = np.array(detector.histogram.current)
        if p.sum() == 40:
            expected = jensenshannon(p, detector.histogram.reference, base=2)
            assert detector.statistic == pytest.approx(expected, abs=1e-8)
    assert len(edges) == 11


def test_chi_square_is_scipys_at_every_step() -> None:
    rng = np.random.default_rng(12)
    reference = np.array([40, 35, 25, 0])
    detector = ChiSquare(reference, threshold=99, window=50, labels=["a", "b", "c", "d"])
    for value in rng.choice(4, 400, p=[0.5, 0.3, 0.15, 0.05]):
        detector.update(value)
        assert detector.histogram is not None
        current = np.array(detector.histogram.current)
        if current.sum() == 50:
            table = np.array([reference, current])
            expected = chi2_contingency(table[:, table.sum(0) > 0], correction=False)
            assert detector.statistic == pytest.approx(expected.statistic, rel=1e-9, abs=1e-9)
            assert detector.p_value == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-12)


@given(
    st.lists(st.integers(-4, 4), min_size=2, max_size=40),
    st.lists(st.integers(-5, 5), min_size=8, max_size=60),
    st.sampled_from([1.0, 0.1, 1e6]),
)
def test_the_sliding_ks_and_wasserstein_are_scipys_with_ties(
    reference: list[int], values: list[int], scale: float
) -> None:
    window = 8
    points = np.array(reference) * scale
    ks = IncrementalKS(points, threshold=0.999, window=window)
    area = Wasserstein1(points, threshold=1e9, window=window)
    for index, value in enumerate(values):
        ks.update(value * scale)
        area.update(value * scale)
        if index + 1 >= window:
            newest = np.array(values[index + 1 - window : index + 1]) * scale
            assert ks.statistic == pytest.approx(ks_2samp(points, newest).statistic, abs=1e-12)
            assert area.statistic == pytest.approx(wasserstein_distance(points, newest), rel=1e-9, abs=1e-9 * scale)


def test_the_sliding_distances_stay_exact_over_a_long_stream() -> None:
    rng = np.random.default_rng(13)
    reference, values = rng.normal(0, 1, 1000), rng.normal(0.2, 1.3, 20_000)
    ks = IncrementalKS(reference, threshold=0.999, window=500)
    area = Wasserstein1(reference, threshold=99, window=500)
    ks.update_many(values)
    area.update_many(values)
    expected = ks_2samp(reference, values[-500:], method="asymp")
    assert ks.statistic == pytest.approx(expected.statistic, abs=1e-15)
    assert ks.p_value == pytest.approx(expected.pvalue, rel=0.35)  # scipy has another correction for small samples
    assert area.statistic == pytest.approx(wasserstein_distance(reference, values[-500:]), rel=1e-10)


def test_the_p_values_are_scipys() -> None:
    for a, x in itertools.product([0.5, 1, 2.5, 30, 200], [0.0, 1e-6, 0.3, 1, 5, 40, 250, 700]):
        assert upper_gamma(a, x) == pytest.approx(gammaincc(a, x), rel=1e-9, abs=1e-300)
    for distance in (0.01, 0.05, 0.1, 0.3):
        assert kolmogorov(distance, 1000, 1000) == pytest.approx(float(kstwo.sf(distance, 500)), rel=0.06)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: CUSUM(0.0, 1.0, k=0.5, threshold=4, clip=9), 168),  # Montgomery's table of the tabular CUSUM
        (lambda: CUSUM(0.0, 1.0, k=0.5, threshold=5, clip=9), 465),
        (lambda: EWMAChart(0.0, 1.0, lambda_val=0.1, threshold=2.814, clip=9), 500),  # Lucas and Saccucci 1990
        (lambda: EWMAChart(0.0, 1.0, lambda_val=0.05, threshold=2.615, clip=9), 500),
    ],
)
def test_control_charts_have_the_textbooks_run_lengths(make: Callable[[], Any], expected: float) -> None:
    alarms = len(make().update_many(np.random.default_rng(14).normal(0, 1, 400_000)))
    assert 400_000 / alarms == pytest.approx(expected, rel=0.12)


def test_one_outlier_is_no_drift_for_a_chart() -> None:
    for detector in (CUSUM(0.0, 1.0), EWMAChart(0.0, 1.0), KNNDistance(ROWS)):
        values = np.zeros((100, 3)) if isinstance(detector, KNNDistance) else np.zeros(100)
        values[50] = 1e6
        assert detector.update_many(values) == []


def test_hotelling_has_chi_squares_p_value() -> None:
    rng = np.random.default_rng(15)
    correlation = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 1.0]])
    rows = rng.multivariate_normal([0, 0, 0], correlation, 6000)
    detector = HotellingT2([0] * 3, [1] * 3, correlation, threshold=1e9, window=20)
    p_values = []
    for row in rows:
        detector.update(row)
        if detector.index % 20 == 0:
            p_values.append(detector.p_value)
    m = rows[-20:].mean(0)
    assert detector.statistic == pytest.approx(20 * m @ np.linalg.inv(correlation) @ m, rel=1e-9)
    assert detector.p_value == pytest.approx(float(chi2.sf(detector.statistic, 3)), rel=1e-9)
    assert np.mean(np.array(p_values) < 0.1) == pytest.approx(0.1, abs=0.06)


def test_knn_distance_is_brute_force() -> None:
    rng = np.random.default_rng(16)
    scales = ROWS.std(0)
    detector = KNNDistance(ROWS, k=4)
    for row in rng.normal(0, 1, (20, 3)):
        detector.update(row)
        distances = np.sort(np.sqrt((((ROWS - row) / scales) ** 2).sum(1)))
        assert detector.distance == pytest.approx(distances[:4].mean(), rel=1e-12)


def test_mmd_comes_near_the_kernels() -> None:
    rng = np.random.default_rng(17)
    reference, current = rng.normal(0, 1, (400, 3)), rng.normal(0.7, 1, (200, 3))
    detector = MMD(reference, threshold=1.9, window=200, components=4096)
    detector.update_many(current)
    a, b = reference / reference.std(0), current / reference.std(0)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / (2 * detector.bandwidth**2)).mean())

    assert detector.statistic == pytest.approx(math.sqrt(kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)), rel=0.05)
    later = MMD(reference, threshold=1.9, window=50, components=40)
    later.update_many(rng.normal(0, 1, (1234, 3)))
    kept = later.to_state()
    assert type(later).from_state(kept).statistic == later.statistic


# the default set of features ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "members"),
    [
        (lambda rng, n: rng.normal(1.0, 1, (n, 3)) * [1, 0, 0] + rng.normal(0, 1, (n, 3)) * [0, 1, 1], {"level"}),
        (lambda rng, n: rng.normal(0, 2.5, (n, 3)), {"spread", "joint"}),
        (lambda rng, n: rng.normal(0, 0.2, (n, 3)), {"spread", "joint"}),
        (lambda rng, n: rng.multivariate_normal([0] * 3, 0.95 + 0.05 * np.eye(3), n), {"joint"}),
        (
            lambda rng, n: rng.choice([-1.0, 1.0], (n, 3)) * (0.8 + 0.2 * rng.random((n, 3))),
            {"shape", "joint", "spread"},
        ),
    ],
)
def test_each_member_of_the_feature_set_sees_its_change(change: Callable[..., np.ndarray], members: set[str]) -> None:
    rng = np.random.default_rng(18)
    detector = FeatureDrift.from_reference(
        rng.normal(0, 1, (2000, 3)), window=200, level=30, spread=30, joint=30, shape=0.25
    )
    assert detector.update_many(rng.normal(0, 1, (2000, 3))) == []
    for row in change(rng, 1000):
        if detector.update(row):
            break
    assert detector.drift_detected and detector.member in members
    assert 1900 <= detector.suspect < detector.index
    assert detector.statistic > detector.threshold == 1.5
    assert detector.values[detector.member] > 0
    if detector.member == "level":
        assert detector.worst == 0
    histogram = detector.histogram(detector.worst)
    assert len(histogram.edges) == 17 and sum(histogram.current) <= 200


def test_the_feature_set_of_64_features_is_small() -> None:
    rows = np.random.default_rng(19).normal(0, 1, (600, 64))
    detector = FeatureDrift.from_reference(rows)
    detector.update_many(rows)
    assert len(detector.to_state()) < 256 * 1024


def test_a_feature_that_is_nearly_constant_is_taken_and_a_constant_one_refused() -> None:
    rows = np.random.default_rng(19).normal(0, 1, (600, 2))
    rows[:, 1] = np.arange(600) % 50 == 0
    assert FeatureDrift.from_reference(rows).update_many(rows) == []
    rows[:, 1] = 3.0
    with pytest.raises(ConfigError, match="feature 1 never varies"):
        FeatureDrift.from_reference(rows)
    for wrong in (rows[:5], rows[:, 0], np.full((50, 2), np.nan)):
        with pytest.raises(ConfigError):
            FeatureDrift.from_reference(wrong)


# the life cycle -------------------------------------------------------------------------------------------


def test_an_alarm_is_raised_once_and_armed_again_when_it_has_calmed() -> None:
    detector = CategoricalPSI([50, 50], threshold=0.2, window=20)
    calm, off = [0, 1] * 30, [0] * 40
    alarms = detector.update_many(calm + off + calm + off)
    assert len(alarms) == 2


def test_the_phases_follow_each_other() -> None:
    detector = CUSUM(threshold=10, warm_up=20, policy="latch")
    phases = []
    rng = np.random.default_rng(21)
    for value in [*rng.normal(0, 1, 120), *np.full(40, 1.5), *np.full(200, -0.3)]:
        detector.update(value)
        if not phases or phases[-1] != detector.phase:
            phases.append(detector.phase)
    assert phases == ["warm-up", "armed", "warning", "alarm", "armed"]


def test_reset_tests_the_same_reference_again_and_rebase_learns_a_new_one() -> None:
    rng = np.random.default_rng(22)
    values = np.concatenate([rng.normal(0, 1, 300), rng.normal(3, 1, 700)])
    reset, rebase, latch = (
        IncrementalKS(threshold=0.5, window=50, warm_up=200, policy=policy)  # type: ignore[arg-type]
        for policy in ("reset", "rebase", "latch")
    )
    assert len(reset.update_many(values)) == 14  # every 50 values, as long as the change lasts
    assert len(rebase.update_many(values)) == 1 and rebase.phase == "armed"
    assert len(latch.update_many(values)) == 1 and latch.phase == "alarm"


@pytest.mark.parametrize(
    "make",
    [
        lambda: CUSUM(threshold=10, warm_up=500),
        lambda: IncrementalKS(threshold=0.3, window=300, warm_up=500),
        lambda: PSI(threshold=0.5, window=300, warm_up=500),
        lambda: Wasserstein1(threshold=0.8, window=300, warm_up=500),
    ],
)
def test_slow_drift_is_not_absorbed(make: Callable[[], Any]) -> None:
    rng = np.random.default_rng(23)
    values = rng.normal(0, 1, 20_000) + np.linspace(0, 2, 20_000)  # one deviation in 10,000 values
    assert make().update_many(values)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ADWIN(delta=0),
        lambda: DDM(warm_start=0),
        lambda: EDDM(alpha=0.5, beta=0.9),
        lambda: HDDMA(drift_confidence=0),
        lambda: HDDMW(lambda_val=0),
        lambda: FHDDM(0),
        lambda: FHDDM(10, 0.5, 20),
        lambda: KSWIN(alpha=0),
        lambda: KSWIN(window_size=50, stat_size=30),
        lambda: PSI([0, 1, 2], None),
        lambda: PSI(warm_up=3),
        lambda: PSI(policy="never"),
        lambda: PSI(bins=1),
        lambda: PSI.from_reference([1.0, 1.0]),
        lambda: JensenShannon([0, 1, math.nan], [1, 1]),
        lambda: ChiSquare([1, 1], threshold=0),
        lambda: IncrementalKS([1.0, math.nan]),
        lambda: IncrementalKS([1.0]),
        lambda: IncrementalKS(threshold=1.0),
        lambda: IncrementalKS(REFERENCE, window=65536, warm_up=65536, policy="rebase"),
        lambda: Wasserstein1([]),
        lambda: CUSUM(1.0, None),
        lambda: CUSUM(1.0, 0.0),
        lambda: CUSUM(k=5, clip=5),
        lambda: EWMAChart(lambda_val=0),
        lambda: Limit(0),
        lambda: Limit(1, 0),
        lambda: KNNDistance(ROWS[:3], k=5),
        lambda: KNNDistance(np.zeros((50, 2))),
        lambda: MMD(ROWS, threshold=0),
        lambda: MMD(ROWS, threshold=1, bandwidth=-1),
        lambda: MMD([[1.0, math.inf]] * 20, threshold=1),
        lambda: Mahalanobis([0.0], [1.0], None, threshold=1, policy="rebase"),
        lambda: Mahalanobis([0.0, 0.0], [1.0, 1.0], [[1.0, 2.0], [2.0, 1.0]], threshold=1, shrinkage=0),
        lambda: BinnedKS([[0, 1, 2]], [[-1, 2]], threshold=0.5),
        lambda: BinnedKS(None, None, threshold=0.5),
        lambda: FeatureDrift([0.0], [1.0], [[0, 1, 2]], [[1, 1]], level=0),
        lambda: FeatureDrift([0.0], [1.0], [[0, 1, 2]], [[1, 1]], moments=[[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]),
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


# stationary streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: CUSUM(),
        lambda rows: EWMAChart(),
        lambda rows: PSI(),
        lambda rows: JensenShannon(),
        lambda rows: IncrementalKS(),
        lambda rows: Wasserstein1(),
        lambda rows: ADWIN(),
        lambda rows: FeatureDrift.from_reference(rows[:, :1]),
        lambda rows: FeatureDrift.from_reference(rows),
        lambda rows: KNNDistance(rows),
    ],
)
def test_defaults_are_quiet_on_stationary_streams(make: Callable[[np.ndarray], Any]) -> None:
    alarmed = 0
    for seed in range(20):
        rng = np.random.default_rng(1000 + seed)
        reference, rows = rng.normal(0, 1, (1000, 6)), rng.normal(0, 1, (3000, 6))
        detector = make(reference)
        d = getattr(detector, "d", 0)
        alarmed += bool(detector.update_many(rows[:, :d] if d else rows[:, 0]))
    assert alarmed <= 2


# presets --------------------------------------------------------------------------------------------------


def test_presets_keep_what_they_promise_and_say_what_they_lack() -> None:
    values = np.random.default_rng(50).normal(0, 1, 600_000)
    for parameters in (drift.preset("CUSUM", 10_000), drift.preset("CUSUM", 10_000, k=0.25)):
        alarms = len(CUSUM(0.0, 1.0, **parameters).update_many(values))
        assert 600_000 / alarms == pytest.approx(10_000, rel=0.35)
    rarer = [drift.preset("CUSUM", arl0)["threshold"] for arl0 in (10_000, 100_000, 1_000_000)]
    assert rarer == sorted(rarer)
    assert drift.preset("ADWIN", 10_000, clock=1)["delta"] > drift.preset("ADWIN", 1_000_000, clock=1)["delta"]
    for wrong in (("CUSUM", 5), ("CUSUM", 10_000, {"k": 3}), ("DDM", 10_000)):
        with pytest.raises(ConfigError, match="preset"):
            drift.preset(wrong[0], wrong[1], **(wrong[2] if len(wrong) > 2 else {}))  # type: ignore[misc]
