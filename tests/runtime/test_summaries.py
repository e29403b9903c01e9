"""Merged summaries say what their parts said together, and nothing is merged that cannot be."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import MINUTE_NS
from kit import minute as make
from tinylcm.summaries import BUCKETS_MAX, Summary, condense, is_mergeable, merge

VALUES = st.lists(st.floats(0.01, 1e6), max_size=30)


@given(VALUES, VALUES)
def test_a_merged_summary_is_that_of_all_the_values(first: list[float], second: list[float]) -> None:
    merged: Any = merge(make(0, first), make(1, second))
    whole = np.array([*first, *second])
    assert merged["covered_ns"] == 2 * MINUTE_NS
    assert merged["merged"] == 2 and merged["windows"] == len(whole)
    assert (merged["start_ns"], merged["end_ns"]) == (0, 2 * MINUTE_NS)
    assert merged["labels"] == {"a": len(whole)} and merged["dropped_samples"] == 2
    latency = merged["latency_us"]
    assert latency["count"] == len(whole)
    assert sum(count for _, count in latency["sketch"]["buckets"]) + latency["sketch"]["zeros"] == len(whole)
    assert is_mergeable(merged)
    if len(whole):
        assert latency["min"] == whole.min() and latency["max"] == whole.max()
        assert latency["mean"] == pytest.approx(whole.mean())
        assert latency["m2"] == pytest.approx(((whole - whole.mean()) ** 2).sum(), rel=1e-6, abs=1e-3)


@given(st.lists(VALUES, min_size=3, max_size=3))
def test_the_order_of_merging_does_not_matter(parts: list[list[float]]) -> None:
    a, b, c = (make(minute, values) for minute, values in enumerate(parts))
    left: Any = merge(merge(a, b), c)  # type: ignore[arg-type]
    right: Any = merge(a, merge(b, c))  # type: ignore[arg-type]
    assert left["merged"] == right["merged"] == 3
    for key in ("latency_us", "confidence"):
        assert left[key]["sketch"] == right[key]["sketch"]
        assert left[key]["mean"] == pytest.approx(right[key]["mean"]) if left[key]["count"] else True
        assert math.isclose(left[key]["m2"], right[key]["m2"], rel_tol=1e-6, abs_tol=1e-3)


def test_the_load_is_weighted_by_time_and_memory_is_the_greatest() -> None:
    first = make(0, [1.0], cpu_percent=10.0, rss_bytes=100)
    second = make(1, [1.0], cpu_percent=40.0, rss_bytes=50, end_ns=4 * MINUTE_NS)
    merged: Any = merge(first, second)
    assert merged["cpu_percent"] == pytest.approx((10 * 1 + 40 * 3) / 4) and merged["rss_bytes"] == 100
    third = make(1, [1.0], cpu_percent=None, rss_bytes=None)
    again: Any = merge(first, third)
    assert again["cpu_percent"] == 10.0 and again["rss_bytes"] == 100


@pytest.mark.parametrize(
    "change",
    [
        {"start_ns": MINUTE_NS - 1},  # they overlap
        {"not_yet_invented": 3},
        {"latency_us": {**make(0, [1.0])["latency_us"], "sketch": {"accuracy": 0.5, "zeros": 0, "buckets": []}}},
    ],
)
def test_what_cannot_be_added_stays_apart(change: dict[str, Any]) -> None:
    first = make(0, [1.0])
    before = copy.deepcopy(first)
    assert merge(first, make(1, [1.0], **change)) is None
    assert first == before


def test_a_field_that_only_the_first_has_keeps_them_apart() -> None:
    assert merge({**make(0, [1.0]), "extra": 1}, make(1, [1.0])) is None
    assert merge({**make(0, [1.0]), "extra": 1}, {**make(1, [1.0]), "extra": 1}) is not None


def test_a_sketch_that_would_grow_without_bound_stays_apart() -> None:
    first, second = make(0, [1.0]), make(1, [1.0])
    for part, start in ((first, 0), (second, BUCKETS_MAX)):
        part["latency_us"]["sketch"]["buckets"] = [[start + index, 1] for index in range(BUCKETS_MAX)]
    assert merge(first, second) is None


@pytest.mark.parametrize(
    "change",
    [
        {"model": 3},
        {"windows": -1},
        {"windows": 1.5},
        {"start_ns": None},
        {"labels": {"a": "many"}},
        {"latency_us": {}},
        {"latency_us": {**make(0, [1.0])["latency_us"], "mean": None}},
        {"rss_bytes": "much"},
        {"merged": -1},
        {"confidence": {**make(0, [1.0])["confidence"], "sketch": {"accuracy": 1, "zeros": 0, "buckets": [[1]]}}},
    ],
)
def test_what_is_no_summary_is_not_merged(change: dict[str, Any]) -> None:
    assert is_mergeable(make(0, [1.0]))
    assert not is_mergeable({**make(0, [1.0]), **change})


@given(
    st.dictionaries(
        st.sampled_from(sorted(make(0, [1.0]))), st.none() | st.integers() | st.text() | st.lists(st.none())
    )
)
def test_any_payload_is_judged_without_an_error(change: dict[str, Any]) -> None:
    payload = {**make(0, [1.0]), **change}
    if is_mergeable(payload):
        merged = merge(payload, make(5, [1.0]))
        assert merged is None or is_mergeable(merged)
    else:
        assert change


def test_what_lies_between_is_not_claimed() -> None:
    merged: Any = merge(make(0, [1.0], cpu_percent=10.0), make(9, [1.0], cpu_percent=30.0))
    assert (merged["start_ns"], merged["end_ns"], merged["covered_ns"]) == (0, 10 * MINUTE_NS, 2 * MINUTE_NS)
    again: Any = merge(merged, make(10, [1.0], cpu_percent=50.0))
    assert again["covered_ns"] == 3 * MINUTE_NS and again["cpu_percent"] == pytest.approx(30.0)


def item(seq: int, payload: dict[str, Any], boot: str = "b1") -> Summary:
    return Summary(boot, seq, payload, (("e", seq),))


def one(summary: Summary) -> int:
    return 1


def test_only_one_model_version_and_boot_is_merged() -> None:
    condensed = condense(
        [
            item(1, make(0, [1.0])),
            item(2, make(0, [1.0], model="other")),
            item(3, make(1, [1.0])),
            item(4, make(2, [1.0]), "b2"),
            item(5, make(2, [1.0], version="2.0.0")),
            item(6, make(2, [1.0])),
        ],
        0,
        one,
    )
    assert sorted([seq for _, seq in each.ids] for each in condensed) == [[1, 3, 6], [2], [4], [5]]
    whole = next(each for each in condensed if len(each.ids) == 3)
    assert whole.payload["merged"] == 3 and whole.boot_ns == 6


def test_what_is_nearest_is_merged_first_and_no_more_than_needed() -> None:
    minutes = [0, 1, 50, 51, 200]
    items = [item(minute + 1, make(minute, [1.0])) for minute in minutes]
    for room, expected in ((5, [1, 1, 1, 1, 1]), (4, [2, 1, 1, 1]), (3, [2, 2, 1]), (2, [4, 1]), (1, [5]), (0, [5])):
        assert [len(each.ids) for each in condense(items, room, one)] == expected


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 5)), max_size=40), st.integers(0, 40))
def test_whatever_is_condensed_every_window_and_id_is_there_once(places: list[tuple[int, int]], room: int) -> None:
    items = [item(n, make(start, [1.0] * count)) for n, (start, count) in enumerate(places)]
    condensed = condense(items, room, one)
    assert sum(each.payload["windows"] for each in condensed) == sum(count for _, count in places)  # type: ignore[misc]
    assert sorted(seq for each in condensed for _, seq in each.ids) == list(range(len(items)))
    starts = {start for start, _ in places}
    assert len(condensed) <= max(room, len(items) - len(starts) + 1)  # only those of one time overlap
