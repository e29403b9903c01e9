"""Statistics in fixed point: within one quantum (2^-16) of the same definitions in fifty decimal digits."""

from __future__ import annotations

import random
from bisect import bisect_right
from decimal import Decimal, localcontext

import pytest
from c_board import CStats, library

ONE = 65536
EDGES = [round((i - 7) * 0.4 * ONE) for i in range(15)]
UP, DOWN = 1, 2


class Oracle:
    """The definitions of tb_stats.h as they stand there, in decimals."""

    def __init__(self, delta: int, threshold: int, warm_up: int, shift: int) -> None:
        self.weight = Decimal(1) / 2**shift
        self.delta, self.threshold, self.warm_up = Decimal(delta) / ONE, Decimal(threshold) / ONE, warm_up
        self.mean: Decimal | None = None
        self.variance = Decimal(0)
        self.restart()

    def restart(self) -> None:
        self.up = self.down = self.sum = Decimal(0)
        self.count = 0
        self.bins = [0] * 16

    def update(self, raw: int) -> int:
        x = Decimal(raw) / ONE
        if self.mean is None:
            self.mean = x
        else:
            d = x - self.mean
            self.mean += self.weight * d
            self.variance = (1 - self.weight) * (self.variance + self.weight * d * d)
        place = bisect_right(EDGES, raw)
        if self.bins[place] == 65535:
            self.bins = [n // 2 for n in self.bins]
        self.bins[place] += 1
        self.count += 1
        self.sum += x
        deviation = x - self.sum / self.count
        self.up = max(Decimal(0), self.up + deviation - self.delta)
        self.down = max(Decimal(0), self.down - deviation - self.delta)
        if self.count < self.warm_up:
            return 0
        return UP if self.up > self.threshold else DOWN if self.down > self.threshold else 0


def compared(values: list[int], delta: int, threshold: int, warm_up: int, shift: int) -> tuple[list[int], float]:
    """Where alarms came, and the largest difference in quanta. Both sides must agree on the alarms themselves."""
    board, oracle = CStats(delta, threshold, warm_up, shift, EDGES), Oracle(delta, threshold, warm_up, shift)
    alarms, worst = [], 0.0
    with localcontext() as context:
        context.prec = 50
        for at, x in enumerate(values):
            direction, mean, variance, up, down, count, bins = board.update(x)
            wanted = oracle.update(x)
            assert oracle.mean is not None
            for got, exact in ((mean, oracle.mean), (variance, oracle.variance), (up, oracle.up), (down, oracle.down)):
                worst = max(worst, float(abs(got - exact * ONE)))
            assert (direction, count, bins) == (wanted, oracle.count, oracle.bins), at
            if direction:
                alarms.append(at)
                oracle.restart()
    board.close()
    return alarms, worst


def noise(seed: int, count: int, mean: float, deviation: float) -> list[int]:
    rng = random.Random(seed)
    return [round(rng.gauss(mean, deviation) * ONE) for _ in range(count)]


def test_72_bytes_a_feature() -> None:
    assert library().stats_size() == 72


@pytest.mark.parametrize("shift", [1, 4, 8, 12])
@pytest.mark.parametrize("mean", [0.0, -30.0, 900.0])
def test_a_stream_with_a_shift_within_one_quantum(shift: int, mean: float) -> None:
    values = noise(1, 4000, mean, 1.0) + noise(2, 1000, mean + 2, 1.0) + noise(3, 1000, mean - 3, 1.0)
    alarms, worst = compared(values, round(0.3 * ONE), 40 * ONE, 100, shift)
    assert worst <= 1.0
    assert len(alarms) >= 2 and 4000 < alarms[0] < 4100


def test_no_alarm_without_a_change() -> None:
    alarms, worst = compared(noise(5, 20_000, 5.0, 1.0), round(0.3 * ONE), 40 * ONE, 100, 6)
    assert alarms == [] and worst <= 1.0


@pytest.mark.parametrize("seed", range(6))
def test_streams_of_any_kind_within_one_quantum(seed: int) -> None:
    rng = random.Random(seed)
    shift = rng.randrange(1, 9)
    level, values = 0.0, []
    for _ in range(5000):
        kind = rng.random()
        if kind < 0.01:
            level = rng.uniform(-50, 50)
        values.append(round((level + rng.gauss(0, 1) * rng.choice([0, 0.1, 3])) * ONE))
    _, worst = compared(values, rng.randrange(ONE), rng.randrange(1, 200 * ONE), rng.randrange(1, 500), shift)
    assert worst <= 1.0


def test_a_constant_stream_stays_at_nothing() -> None:
    alarms, worst = compared([12345] * 3000, 0, 1, 1, 8)
    assert alarms == [] and worst == 0.0


def test_a_bin_that_would_overflow_halves_them_all() -> None:
    values = [0] * 65535 + [ONE] * 3 + [0, 0]
    board = CStats(ONE, 2**31 - 1, 1, 1, EDGES)
    for x in values[:-2]:
        board.update(x)
    before = board.update(0)[6]
    assert sorted(before, reverse=True)[:3] == [32768, 1, 0]
    board.close()


def test_values_at_the_ends_of_the_range_saturate_and_do_not_overflow() -> None:
    board = CStats(0, 2**31 - 1, 1, 1, EDGES)
    least, largest = -(2**31), 2**31 - 1
    for at in range(2000):
        direction, mean, variance, up, down, _, _ = board.update(largest if at % 2 else least)
        assert direction == 0
        assert least <= mean <= largest and 0 <= variance <= largest and 0 <= up <= largest and 0 <= down <= largest
    assert variance == largest
    board.close()


@pytest.mark.parametrize(
    "bad",
    [
        {"delta": -1}, {"threshold": 0}, {"warm_up": 0}, {"shift": 0}, {"shift": 15},
        {"edges": [0] * 15}, {"edges": [*EDGES[:14], EDGES[13]]},
    ],
)  # fmt: skip
def test_a_watch_out_of_range_is_refused(bad: dict) -> None:
    good = {"delta": 0, "threshold": 1, "warm_up": 1, "shift": 1, "edges": EDGES}
    CStats(**good).close()
    with pytest.raises(ValueError, match="refused"):
        CStats(**{**good, **bad})
