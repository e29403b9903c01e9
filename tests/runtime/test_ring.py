"""The compiled ring against a list of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylcm._ext.ring import BAD_LENGTH, BAD_TYPE, DUE, NOT_FINITE, OK, Ring, copy_finite


def windows_of(rows: np.ndarray, window: int, hop: int) -> list[np.ndarray]:
    return [rows[end - window : end] for end in range(window, len(rows) + 1, hop)]


@given(
    channels=st.integers(1, 4),
    window=st.integers(1, 9),
    hop=st.integers(1, 12),
    spare=st.integers(0, 7),
    length=st.integers(0, 60),
    cut=st.integers(1, 20),
)
def test_windows_equal_slices_whether_rows_or_blocks_are_given(
    channels: int, window: int, hop: int, spare: int, length: int, cut: int
) -> None:
    rows = np.arange(length * channels, dtype=np.float32).reshape(length, channels)
    by_row, by_block = (Ring(window + spare, channels, window, hop) for _ in range(2))
    out = np.zeros((window, channels), dtype=np.float32)
    seen: list[np.ndarray] = []
    for row in rows.tolist():
        if by_row.push(row) == DUE:
            by_row.copy_window(out)
            seen.append(out.copy())
    blocks: list[np.ndarray] = []
    for start in range(0, length, cut):
        block, place = np.ascontiguousarray(rows[start : start + cut]), 0
        while place < len(block):
            place = by_block.push_block(block, place)
            if by_block.due:
                by_block.copy_window(out)
                blocks.append(out.copy())
    expected = windows_of(rows, window, hop)
    assert len(seen) == len(blocks) == len(expected)
    for got, also, want in zip(seen, blocks, expected, strict=True):
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(also, want)


def test_bad_rows_change_nothing_and_say_where() -> None:
    ring = Ring(4, 2, 2, 1)
    assert ring.push([1.0, 2.0]) == OK
    assert ring.push([1.0]) == BAD_LENGTH
    assert ring.push([1.0, "2"]) == BAD_TYPE and ring.bad_channel == 1
    assert ring.push([float("nan"), 0.0]) == NOT_FINITE and ring.bad_channel == 0
    assert ring.push([0.0, 1e39]) == NOT_FINITE and ring.bad_channel == 1  # float32 has no such number
    assert ring.push([0.0, 10**400]) == BAD_TYPE
    assert ring.push("ab") == BAD_TYPE
    assert ring.total == 1
    assert ring.push([3.0, 4.0]) == DUE


def test_a_block_stops_at_a_value_that_is_not_finite() -> None:
    ring = Ring(8, 2, 3, 1)
    block = np.array([[1, 1], [2, np.inf], [3, 3]], dtype=np.float32)
    assert ring.push_block(block) == 1
    assert ring.bad_channel == 1
    assert ring.push_block(block, 2) == 3
    assert ring.bad_channel == -1


def test_restart_forgets_the_window() -> None:
    ring = Ring(4, 1, 2, 1)
    ring.push([1.0])
    ring.restart()
    assert ring.push([2.0]) == OK
    assert ring.push([3.0]) == DUE


@pytest.mark.parametrize("shape", [(0, 1, 1, 1), (1, 0, 1, 1), (2, 1, 3, 1), (2, 1, 1, 0), (1 << 50, 1 << 20, 1, 1)])
def test_impossible_rings_are_refused(shape: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="ring"):
        Ring(*shape)


def test_reading_too_early_or_into_the_wrong_shape_is_refused() -> None:
    ring = Ring(4, 2, 2, 1)
    with pytest.raises(ValueError, match="whole window"):
        ring.copy_window(np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(ValueError, match=r"expected \[2, 2\]"):
        ring.copy_window(np.zeros((2, 3), dtype=np.float32))


@settings(max_examples=50)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_copy_finite_finds_the_first_value_that_is_not(values: list[float]) -> None:
    source = np.array(values, dtype=np.float32)
    out = np.zeros_like(source)
    bad = [index for index, value in enumerate(source) if not np.isfinite(value)]
    assert copy_finite(source, out) == (bad[0] if bad else -1)
