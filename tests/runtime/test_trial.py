"""The verdict on a package's trial, bound by bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylcm.trial import PASSED, Counts, Trial, TrialBounds, p95

START = Counts(predictions=100, failures=3, alarms=7)
TRIAL = Trial("1" * 64, START, before_us=200.0)


def counts(windows: int, *, failures: int = 0, alarms: int = 0) -> Counts:
    return Counts(START.predictions + windows, START.failures + failures, START.alarms + alarms)


def recent(latencies: list[float], confidence: float = 0.9) -> list[tuple[float, float, str]]:
    return [(latency, confidence, "x") for latency in latencies]


def test_a_trial_goes_on_until_its_windows_are_complete() -> None:
    assert TRIAL.judge(TrialBounds(20), counts(19), recent([1e9] * 19, 0.0)) is None
    assert TRIAL.judge(TrialBounds(20), counts(20), recent([1e9] * 20, 0.0)) == PASSED  # no bounds are set


@pytest.mark.parametrize(
    ("bounds", "now", "seen", "reason"),
    [
        (TrialBounds(20), counts(1, failures=1), recent([1.0]), "failed on 1 windows of its trial, at most 0"),
        (TrialBounds(20, errors_max=2), counts(0, failures=3), [], "failed on 3 windows"),
        (TrialBounds(20, alarms_max=2), counts(5, alarms=3), recent([1.0] * 5), "raised 3 drift alarms"),
        (TrialBounds(20, latency_p95_us=50), counts(20), recent([10.0] * 18 + [51.0] * 2), "took up to 51 us"),
        (TrialBounds(20, latency_factor=1.5), counts(20), recent([301.0] * 20), "at most 300 us are allowed"),
        (TrialBounds(20, confidence_min=0.7), counts(20), recent([1.0] * 20, 0.69), "confidence was 0.690"),
        (TrialBounds(20, confidence_min=0.7), counts(20), recent([1.0] * 20, float("nan")), "confidence was nan"),
    ],
)
def test_a_bound_that_is_not_kept_ends_it_with_the_reason(
    bounds: TrialBounds, now: Counts, seen: list[tuple[float, float, str]], reason: str
) -> None:
    verdict = TRIAL.judge(bounds, now, seen)
    assert verdict is not None and reason in verdict


@pytest.mark.parametrize(
    ("bounds", "now", "seen"),
    [
        (TrialBounds(20, errors_max=2), counts(20, failures=2), recent([1.0] * 20)),
        (TrialBounds(20, alarms_max=2), counts(20, alarms=2), recent([1.0] * 20)),
        (TrialBounds(20), counts(20, alarms=99), recent([1.0] * 20)),
        (TrialBounds(20, latency_p95_us=50), counts(20), recent([10.0] * 19 + [5000.0])),
        (TrialBounds(20, latency_factor=1.5), counts(20), recent([300.0] * 20)),
        (TrialBounds(20, confidence_min=0.7), counts(20), recent([1.0] * 20, 0.7)),
    ],
)
def test_what_is_within_its_bounds_passes(
    bounds: TrialBounds, now: Counts, seen: list[tuple[float, float, str]]
) -> None:
    assert TRIAL.judge(bounds, now, seen) == PASSED


def test_windows_from_before_the_trial_are_not_judged() -> None:
    bounds = TrialBounds(5, latency_p95_us=10.0, confidence_min=0.5)
    seen = recent([1e6] * 50, 0.0) + recent([1.0] * 5)
    assert TRIAL.judge(bounds, counts(5), seen) == PASSED


def test_a_factor_of_nothing_known_is_off() -> None:
    first = Trial("1" * 64, START)
    assert first.judge(TrialBounds(1, latency_factor=2.0), counts(1), recent([1e9])) == PASSED


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=60))
def test_the_percentile_is_the_least_value_that_95_percent_do_not_exceed(values: list[float]) -> None:
    found = p95(values)
    assert found in values
    assert sum(value <= found for value in values) >= 0.95 * len(values)
    below = [value for value in values if value < found]
    assert not below or sum(value <= max(below) for value in values) < 0.95 * len(values)
    assert p95([]) == 0.0
