"""The board's clock: offset and drift come out of noisy answers, a jump is noticed, nonsense is not believed."""

from __future__ import annotations

import doctest
import random

import numpy as np
import pytest

from firmware_bridge import clocks
from firmware_bridge.clocks import ClockFit


def feed(clock: ClockFit, *, seconds: int, ppm: float, start_us: int = 5_000_000, noise_us: int = 4000,
         seed: int = 1, from_s: int = 0) -> None:  # fmt: skip
    draw = random.Random(seed)
    for second in range(from_s, from_s + seconds):
        at = second * 1_000_000
        there, back = 200 + int(draw.expovariate(1 / noise_us)), 200 + int(draw.expovariate(1 / noise_us))
        board = start_us + round((at + there) * (1 + ppm / 1e6))
        clock.add(at, board, board, at + there + back)


@pytest.mark.parametrize("ppm", [0, 40, -40, 5000, -20_000, 50_000])
def test_offset_and_drift_are_found_through_jitter(ppm: float) -> None:
    clock = ClockFit()
    feed(clock, seconds=120, ppm=ppm)
    for second in (90, 119):
        board = 5_000_000 + round(second * 1e6 * (1 + ppm / 1e6))
        assert abs(clock.host_us(board) - second * 1_000_000) < 3000
    assert clock.jumps == 0
    assert abs(clock.drift_ppm + ppm / (1 + ppm / 1e6)) < 100


def test_many_times_are_turned_at_once() -> None:
    clock = ClockFit()
    feed(clock, seconds=30, ppm=100)
    boards = np.arange(5_000_000, 35_000_000, 1_000_000, dtype=np.int64)
    assert np.allclose(clock.host_us(boards), [clock.host_us(int(board)) for board in boards])


def test_a_slow_answer_counts_less_than_a_quick_one() -> None:
    clock = ClockFit()
    feed(clock, seconds=10, ppm=0, noise_us=1)
    before = clock.host_us(15_000_000)
    clock.add(11_000_000, 16_000_000 + 90_000, 16_000_000 + 90_000, 11_000_000 + 100_000)
    assert abs(clock.host_us(15_000_000) - before) < 100
    assert clock.error_us is not None and clock.error_us < 300


@pytest.mark.parametrize("jump_us", [60_000_000, -4_000_000, 300_000])
def test_a_jump_is_noticed_and_the_new_time_believed(jump_us: int) -> None:
    clock = ClockFit()
    feed(clock, seconds=20, ppm=10, noise_us=100)
    feed(clock, seconds=10, ppm=10, noise_us=100, start_us=5_000_000 + jump_us, from_s=20)
    assert clock.jumps == 1
    assert abs(clock.host_us(5_000_000 + jump_us + 29_000_000) - 29_000_000) < 2000


def test_one_odd_answer_changes_nothing() -> None:
    clock = ClockFit()
    feed(clock, seconds=10, ppm=0, noise_us=10)
    assert clock.add(10_000_000, 90_000_000, 90_000_000, 10_000_300)
    feed(clock, seconds=5, ppm=0, noise_us=10, from_s=11)
    assert clock.jumps == 0
    assert abs(clock.host_us(19_000_000) - 14_000_000) < 500


@pytest.mark.parametrize(
    "times", [(10, 5, 4, 20), (10, 0, 1000, 20), (20, 5, 5, 10), (0, 2**63, 2**63, 10), (0, 5, 2**64 - 1, 10)]
)
def test_answers_that_contradict_themselves_are_counted(times: tuple[int, int, int, int]) -> None:
    clock = ClockFit()
    assert clock.add(*times)
    assert (clock.implausible, clock.known, clock.error_us) == (1, False, None)


def test_after_a_reset_nothing_is_known() -> None:
    clock = ClockFit()
    feed(clock, seconds=5, ppm=0)
    clock.reset()
    assert not clock.known and clock.samples == 0


def test_its_examples_are_true() -> None:
    assert doctest.testmod(clocks).failed == 0
