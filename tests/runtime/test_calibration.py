"""Calibration measured: promised against measured false alarms, on streams that the calibration has not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import false_discovery_control
from tinylcm.calibration import (
    TUNED,
    Bootstrap,
    autocorrelation_time,
    calibrate,
    calibrate_set,
    holm,
    make_detector,
)
from tinylcm.errors import ConfigError, InputError

RNG = np.random.default_rng(40)


def autoregressive(n: int, coefficient: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(0, 1, n + 500)
    values = np.zeros(n + 500)
    for index in range(1, n + 500):
        values[index] = coefficient * values[index - 1] + noise[index]
    return values[500:]


@pytest.mark.parametrize(
    ("detector", "parameters"),
    [
        ("CUSUM", {}),
        ("EWMAChart", {}),
        ("PageHinkley", {"delta": 0.25}),
        ("ADWIN", {}),
        ("IncrementalKS", {"window": 100}),
        ("PSI", {"window": 100}),
    ],
)
def test_the_measured_rate_is_the_promised_one_on_fresh_data(detector: str, parameters: dict[str, Any]) -> None:
    arl0 = 2000
    rng = np.random.default_rng(41)
    reference = rng.normal(5, 2, 20_000)
    result = calibrate(detector, reference, arl0, replicates=12, **parameters)
    assert result.low <= result.measured <= result.high
    assert 0.6 * arl0 <= result.measured <= 1.7 * arl0
    policy = {} if detector in ("ADWIN", "PageHinkley") else {"policy": "reset"}
    fresh = make_detector(detector, reference, **parameters, **policy, **{result.parameter: result.value})
    alarms = len(fresh.update_many(rng.normal(5, 2, 200_000)))
    assert 0.4 * arl0 <= 200_000 / max(alarms, 1) <= 2.5 * arl0


def test_autocorrelated_streams_need_and_get_another_threshold() -> None:
    rng = np.random.default_rng(42)
    reference = autoregressive(20_000, 0.9, rng)
    arl0 = 2000
    naive = calibrate("CUSUM", rng.permutation(reference), arl0, replicates=12)
    right = calibrate("CUSUM", reference, arl0, replicates=12)
    assert right.block > 100 and right.effective < 4000 < naive.effective
    fresh = autoregressive(400_000, 0.9, rng)

    def measured(threshold: float) -> float:
        detector = make_detector("CUSUM", reference, threshold=threshold)
        return 400_000 / max(1, len(detector.update_many(fresh)))

    assert measured(naive.value) < arl0 / 10  # a threshold for independent samples misfires
    assert 0.4 * arl0 <= measured(right.value) <= 2.5 * arl0


@pytest.mark.long
@pytest.mark.parametrize("detector", ["Mahalanobis", "HotellingT2", "KNNDistance", "MMD", "BinnedKS", "FeatureDrift"])
def test_detectors_of_rows_are_calibrated(detector: str) -> None:
    rows = RNG.normal(0, 1, (3000, 2))
    parameters: dict[str, Any] = {} if detector == "KNNDistance" else {"window": 50}
    result = calibrate(detector, rows, 300, replicates=6, alarms=20, **parameters)
    assert 100 <= result.measured <= 900


@pytest.mark.parametrize(
    "detector", ["DDM", "EDDM", "HDDMA", "HDDMW", "FHDDM", "KSWIN", "JensenShannon", "Wasserstein1"]
)
def test_every_other_detector_is_calibrated_or_says_why_not(detector: str) -> None:
    errors = (RNG.random(5000) < 0.2).astype(float)
    values = RNG.normal(0, 1, 5000)
    reference = values if detector in ("KSWIN", "JensenShannon", "Wasserstein1") else errors
    try:
        result = calibrate(detector, reference, 500, replicates=6, alarms=20)
    except ConfigError as error:
        assert "cannot support" in str(error)
        return
    assert result.measured >= 100
    assert result.to_json()["parameter"] == TUNED[detector].name


def test_categories_are_calibrated() -> None:
    labels = RNG.choice(4, 5000, p=[0.4, 0.3, 0.2, 0.1]).astype(float)
    for detector in ("CategoricalPSI", "ChiSquare"):
        assert 200 <= calibrate(detector, labels, 1000, replicates=6, alarms=30).measured <= 4000


def test_a_set_keeps_the_rate_of_one() -> None:
    rng = np.random.default_rng(43)
    common = rng.normal(0, 1, 20_000)
    columns = {"alone": rng.normal(0, 1, 20_000), "a": common, "b": common + rng.normal(0, 0.1, 20_000)}
    together = calibrate_set("CUSUM", columns, 2000, replicates=10)
    assert together.measured >= 0.7 * 2000
    assert all(member.monitors == 3 and member.measured > 3000 for member in together.members.values())
    assert together.to_json()["members"]["a"]["monitors"] == 3
    # Each calibrated alone, the set misfires.
    alone = calibrate("CUSUM", columns["alone"], 2000, replicates=10)
    assert alone.value < together.members["alone"].value


def test_a_reference_that_is_too_short_is_refused_with_what_it_can_support() -> None:
    short = autoregressive(3000, 0.9, np.random.default_rng(44))
    with pytest.raises(ConfigError, match="cannot support an ARL0 of 1,000,000"):
        calibrate("CUSUM", short, 1_000_000, replicates=10, alarms=10)
    with pytest.raises(InputError, match="record longer"):
        calibrate("CUSUM", autoregressive(800, 0.95, np.random.default_rng(45)), 1000)


def test_the_same_seed_gives_the_same_threshold_and_progress_rises() -> None:
    reference, shares = RNG.normal(0, 1, 3000), []
    first = calibrate("CUSUM", reference, 500, replicates=5, seed=7, progress=shares.append)
    assert calibrate("CUSUM", reference, 500, replicates=5, seed=7) == first
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)


def test_the_autocorrelation_time_is_the_known_one() -> None:
    rng = np.random.default_rng(46)
    assert autocorrelation_time(rng.normal(0, 1, 20_000)) == pytest.approx(1, abs=0.3)
    for coefficient in (0.5, 0.9):
        known = (1 + coefficient) / (1 - coefficient)
        assert autocorrelation_time(autoregressive(50_000, coefficient, rng)) == pytest.approx(known, rel=0.25)
    bursts = rng.normal(0, 1, 20_000) * np.repeat(rng.choice([0.2, 2.0], 200), 100)
    assert autocorrelation_time(bursts) > 20  # not its own correlation, but that of its size


def test_blocks_keep_the_order_within() -> None:
    bootstrap = Bootstrap(np.arange(1000.0) % 10, block=50)
    drawn = bootstrap.draw(np.random.default_rng(0), 500)
    assert len(drawn) == 500
    assert np.mean(np.diff(drawn) % 10 == 1) > 0.95


@pytest.mark.parametrize(
    ("arguments", "error", "problem"),
    [
        (("Nothing", np.zeros(100), 1000), ConfigError, "no detector"),
        (("CUSUM", RNG.normal(0, 1, 100), 10), ConfigError, "arl0 of 100"),
        (("CUSUM", np.zeros(1000), 1000), InputError, "never varies"),
        (("CUSUM", [1.0, np.nan] * 100, 1000), InputError, "not finite"),
        (("CUSUM", np.zeros((2, 2, 2)), 1000), InputError, "shape"),
        (("CUSUM", RNG.normal(0, 1, (500, 2)), 1000), InputError, r"values \[n\]"),
        (("FeatureDrift", RNG.normal(0, 1, 500), 1000), InputError, r"rows \[n, d\]"),
        (("CUSUM", ["a", "b"], 1000), InputError, "numbers"),
    ],
)
def test_wrong_calls_are_refused(arguments: tuple[Any, ...], error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem):
        calibrate(*arguments)


def test_wrong_parameters_are_refused() -> None:
    values = RNG.normal(0, 1, 500)
    for parameters, problem in [
        ({"threshold": 3}, "leave it out"),
        ({"nonsense": 3}, "nonsense"),
        ({"k": -1}, "k <= 100"),
    ]:
        with pytest.raises(ConfigError, match=problem):
            calibrate("CUSUM", values, 1000, **parameters)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="block is"):
        calibrate("CUSUM", values, 1000, block=-5)
    with pytest.raises(InputError, match="as long as each other"):
        calibrate_set("CUSUM", {"a": values, "b": values[:10]}, 1000)
    with pytest.raises(ConfigError, match="needs columns"):
        calibrate_set("CUSUM", {}, 1000)


def test_holm_is_the_step_down_procedure() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert holm([0.2, float("nan"), 0.001], 0.05) == [False, False, True]
    assert holm([], 0.05) == []
    rng = np.random.default_rng(47)
    for _ in range(50):
        p = rng.random(8) ** 3
        # Holm never rejects what Benjamini and Hochberg keep, and always what Bonferroni rejects.
        fallen = np.array(holm(p.tolist(), 0.05))
        assert not (fallen & (false_discovery_control(p) > 0.05)).any()
        assert fallen[p < 0.05 / 8].all()
