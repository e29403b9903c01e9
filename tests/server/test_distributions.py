"""Sums of what summaries say, beside NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import summary
from tinylcm.checks import Fields
from tinylcm.errors import WireError
from tinysphere.distributions import BUCKETS_KEPT_MAX, Distribution, quantile, read

values = st.lists(st.floats(0.001, 1e6), max_size=40)


def told(numbers: list[float]) -> Distribution:
    """What a device tells of numbers."""
    if not numbers:
        return Distribution()
    payload = summary(numbers, [0.5])["latency_us"]
    return read(Fields(payload, "latency_us", WireError))  # type: ignore[arg-type]


@given(st.lists(values, min_size=1, max_size=5))
def test_a_sum_says_what_all_say_in_any_order(parts: list[list[float]]) -> None:
    for order in (parts, parts[::-1]):
        whole = Distribution()
        for part in order:
            whole.add(told(part))
        every = np.array([value for part in parts for value in part])
        assert whole.count == len(every)
        if not len(every):
            assert whole.quantile(0.5) is None and whole.mean is None
            continue
        assert whole.mean == pytest.approx(every.mean(), rel=1e-9)
        assert (whole.min, whole.max) == (every.min(), every.max())
        for q in (0.0, 0.05, 0.5, 0.99, 1.0):
            assert whole.quantile(q) == pytest.approx(np.quantile(every, q, method="lower"), rel=0.0102)
        if len(every) > 1:
            assert whole.std == pytest.approx(every.std(ddof=1), rel=1e-6, abs=1e-6 * abs(every.max()))


def test_sketches_of_two_accuracies_become_one_of_the_coarser() -> None:
    fine = Distribution(3, 7.0, 0.0, 7.0, 7.0, 0.001, 0, {round(math.log(7) / math.log(1.001 / 0.999)): 3})
    coarse = Distribution(1, 7.0, 0.0, 7.0, 7.0, 0.02, 0, {math.ceil(math.log(7) / math.log(1.02 / 0.98)): 1})
    for first, second in ((fine, coarse), (coarse, fine)):
        whole = Distribution()
        whole.add(first)
        whole.add(second)
        assert whole.accuracy == 0.02 and whole.count == 4
        assert whole.quantile(0.5) == pytest.approx(7.0, rel=0.045)


def test_what_one_did_not_tell_nobody_knows() -> None:
    whole = told([1.0, 2.0])
    whole.add(Distribution(3, 1.5, None, None, None, 0.01, 0, {}))
    assert whole.count == 5 and whole.mean == pytest.approx(1.5)
    assert (whole.m2, whole.std, whole.min, whole.max) == (None, None, None, None)


def test_a_wide_sketch_keeps_its_upper_quantiles() -> None:
    whole = Distribution()
    for start in range(0, 3 * BUCKETS_KEPT_MAX, 1000):
        whole.add(Distribution(1000, None, None, None, None, 0.01, 0, dict.fromkeys(range(start, start + 1000), 1)))
    assert len(whole.buckets) == BUCKETS_KEPT_MAX and sum(whole.buckets.values()) == whole.count
    top = 3 * BUCKETS_KEPT_MAX // 1000 * 1000 + 999
    assert max(whole.buckets) == top


def test_sums_that_no_integer_holds_stay_at_the_greatest() -> None:
    whole = Distribution(buckets={0: 1})
    for _ in range(3):
        whole.add(Distribution((1 << 63) - 1, 1e308, 1e308, 0.0, 1e308, 0.01, (1 << 63) - 1, {0: (1 << 63) - 1}))
        whole.add(Distribution((1 << 63) - 1, -1e308, 1e308, -1e308, 0.0, 0.01, 0, {}))
    assert whole.count == whole.zeros == whole.buckets[0] == (1 << 63) - 1
    assert whole.quantile(0.99) is not None


def test_quantiles_of_nothing_and_of_zeros() -> None:
    assert quantile({}, 0.01, 0, 0.5) is None
    assert quantile({}, 0.01, 3, 0.5) == 0.0
    assert quantile({10**6: 1}, 0.01, 0, 0.5) is not None
