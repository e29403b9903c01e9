"""The compiled ring and its readers against a list of rows."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tinylcm._ext.ring import BAD_LENGTH, BAD_TYPE, NOT_FINITE, OK, READERS_MAX, Reader, Ring, first_not_finite

Windows = list[list[tuple[int, NDArray[np.float32]]]]  # of each reader: the first sample's place and the values


def cuts_of(rows: NDArray[np.float32], restarts: list[int], window: int, hop: int) -> list[tuple[int, NDArray]]:
    """Every window of a list of rows: none spans a restart, and each restart begins anew."""
    found = []
    for begin, end in zip([0, *restarts], [*restarts, len(rows)], strict=True):
        found += [(last - window, rows[last - window : last]) for last in range(begin + window, end + 1, hop)]
    return found


def read_due(ring: Ring, readers: list[Reader], seen: Windows) -> None:
    for reader, windows in zip(readers, seen, strict=True):
        if reader.take():
            out = np.zeros((reader.window, ring.channels), dtype=np.float32)
            reader.copy_window(out)
            windows.append((reader.first_sample, out))
            assert reader.last_sample == reader.first_sample + reader.window - 1
            assert reader.filled == 0 and np.isnan([reader.start_s, reader.end_s]).all()


@given(
    channels=st.integers(1, 4),
    cuts=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=4),
    spare=st.integers(0, 7),
    length=st.integers(0, 60),
    step=st.integers(1, 20),
    restarts=st.lists(st.integers(0, 60), max_size=3),
)
def test_windows_equal_slices_whether_rows_or_blocks_are_given(
    channels: int, cuts: list[tuple[int, int]], spare: int, length: int, step: int, restarts: list[int]
) -> None:
    rows = np.arange(length * channels, dtype=np.float32).reshape(length, channels)
    restarts = sorted(min(place, length) for place in restarts)
    capacity = max(window for window, _ in cuts) + spare
    by_row, by_block = Ring(capacity, channels), Ring(capacity, channels)
    row_readers = [Reader(by_row, *cut) for cut in cuts]
    block_readers = [Reader(by_block, *cut) for cut in cuts]
    seen: Windows = [[] for _ in cuts]
    also: Windows = [[] for _ in cuts]
    for begin, end in zip([0, *restarts], [*restarts, length], strict=True):
        for row in rows[begin:end].tolist():
            assert by_row.push(row) == OK
            read_due(by_row, row_readers, seen)
        for start in range(begin, end, step):
            block, place = rows[start : min(start + step, end)], 0
            while place < len(block):
                place = by_block.push_block(block, None, place)
                read_due(by_block, block_readers, also)
        by_row.restart()
        by_block.restart()
    for cut, got, blocks in zip(cuts, seen, also, strict=True):
        expected = cuts_of(rows, restarts, *cut)
        for windows in (got, blocks):
            assert [first for first, _ in windows] == [first for first, _ in expected]
            for (_, values), (_, want) in zip(windows, expected, strict=True):
                np.testing.assert_array_equal(values, want)
    assert by_row.total == by_block.total == length


def test_bad_rows_are_not_taken_and_say_where() -> None:
    ring = Ring(4, 2)
    reader = Reader(ring, 2, 1)
    assert ring.push([1.0, 2.0]) == OK
    assert ring.push([1.0]) == BAD_LENGTH
    assert ring.push([1.0, "2"]) == BAD_TYPE and ring.bad_channel == 1
    assert ring.push([float("nan"), 0.0]) == NOT_FINITE and ring.bad_channel == 0
    assert ring.push([0.0, 1e39]) == NOT_FINITE and ring.bad_channel == 1  # float32 has no such number
    assert ring.push([0.0, 10**400]) == BAD_TYPE
    assert ring.push("ab") == BAD_TYPE
    assert (ring.total, ring.dropped, ring.missing, ring.gaps) == (1, 6, 6, 1)
    assert ring.push([3.0, 4.0]) == OK and not reader.take()  # the window began anew
    assert ring.push([5.0, 6.0]) == OK and reader.take() and not reader.take()


def test_a_block_stops_at_a_value_that_is_not_finite_and_at_a_bad_time() -> None:
    ring = Ring(8, 2)
    block = np.array([[1, 1], [2, np.inf], [3, 3]], dtype=np.float32)
    assert ring.push_block(block) == 2
    assert ring.bad_channel == 1
    assert ring.push_block(block, None, 2) == 3
    assert ring.bad_channel == -1
    assert ring.push_block(np.ones((2, 2), dtype=np.float32), np.array([0.0, np.nan])) == 2
    assert ring.bad_channel == ring.channels
    assert (ring.total, ring.dropped) == (3, 2)


def test_a_block_stops_at_each_reader_that_is_due() -> None:
    ring = Ring(4, 1)
    slow, quick = Reader(ring, 4, 4), Reader(ring, 1, 3)
    block = np.arange(8, dtype=np.float32)[:, np.newaxis]
    stops, place = [], 0
    while place < 8:
        place = ring.push_block(block, None, place)
        stops.append((place, quick.take(), slow.take()))
    assert stops == [(1, True, False), (4, True, True), (7, True, False), (8, False, True)]


def test_the_shortest_ring_and_a_hop_beyond_the_window() -> None:
    ring = Ring(1, 1)
    reader = Reader(ring, 1, 5)
    taken = [index for index in range(12) if ring.push([float(index)]) == OK and reader.take()]
    assert taken == [0, 5, 10]


@pytest.mark.parametrize("shape", [(0, 1), (1, 0), (-1, 1), (1 << 50, 1 << 20), (1, 1 << 62), (1 << 61, 1)])
def test_impossible_rings_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="ring"):
        Ring(*shape)


@pytest.mark.parametrize(
    "policy",
    [
        {"missing": "guess"},
        {"late": "hold"},
        {"duplicate": "interpolate"},
        {"rate_hz": -1.0},
        {"rate_hz": float("nan")},
        {"jitter": 0.0},
        {"jitter": 1.0},
        {"gap_max": -1},
    ],
)
def test_policies_that_cannot_be_are_refused(policy: dict[str, float | str]) -> None:
    with pytest.raises(ValueError, match=r"one of|expected"):
        Ring(4, 1, **policy)


@pytest.mark.parametrize("cut", [(0, 1), (1, 0), (5, 1), (-1, 1)])
def test_readers_that_do_not_fit_are_refused(cut: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="window"):
        Reader(Ring(4, 1), *cut)


def test_a_ring_has_so_many_readers_and_no_more() -> None:
    ring = Ring(1, 1)
    for _ in range(READERS_MAX):
        Reader(ring, 1, 1)
    with pytest.raises(ValueError, match=str(READERS_MAX)):
        Reader(ring, 1, 1)


def test_reading_too_early_or_into_the_wrong_shape_is_refused() -> None:
    ring = Ring(4, 2)
    reader = Reader(ring, 2, 2)
    with pytest.raises(ValueError, match="whole window"):
        reader.copy_window(np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(ValueError, match=r"expected \[2, 2\]"):
        reader.copy_window(np.zeros((2, 3), dtype=np.float32))
    for wrong in (np.zeros((2, 3), dtype=np.float32), np.zeros(2, dtype=np.float32)):
        with pytest.raises(ValueError):
            ring.push_block(wrong)
    with pytest.raises(ValueError, match="times"):
        ring.push_block(np.zeros((2, 2), dtype=np.float32), np.zeros(3))
    with pytest.raises(ValueError, match="negative"):
        ring.push_block(np.zeros((2, 2), dtype=np.float32), None, -1)


def test_a_reader_keeps_its_ring_and_both_go_together() -> None:
    class Token:
        pass

    reader = Reader(Ring(2, 1), 2, 1)  # nothing else holds the ring
    gc.collect()
    assert reader.ring.push([1.0]) == OK and reader.ring.push([2.0]) == OK and reader.take()
    token = Token()
    gone = weakref.ref(token)
    reader.ring.readers.append(token)  # type: ignore[arg-type]
    del token, reader
    gc.collect()
    assert gone() is None


@settings(max_examples=50)
@given(st.lists(st.floats(width=32), max_size=40))
def test_the_first_value_that_is_not_finite_is_found(values: list[float]) -> None:
    source = np.array(values, dtype=np.float32)
    bad = [index for index, value in enumerate(source) if not np.isfinite(value)]
    assert first_not_finite(source) == (bad[0] if bad else -1)
