"""What a board's clock says, in the host's time: offset and drift from TIME answers. The board's clock is never set.

An answer is worth as much as its way there and back was short: those near the shortest of the last ones decide. Through
them goes a line, offset and drift (weighted least squares). A clock that jumps is noticed, and the line begun anew.

>>> clock = ClockFit()
>>> for second in range(10):  # the board's clock began at 5 s and runs 1 % fast
...     at = second * 1_000_000
...     board = 5_000_000 + at * 101 // 100
...     _ = clock.add(at - 400, board, board, at + 400)
>>> round(clock.drift_ppm), round(clock.host_us(5_000_000 + 9_090_000))
(-9901, 9000000)
"""

from __future__ import annotations

from collections import deque
from typing import Final, overload

import numpy as np
from numpy.typing import NDArray

SAMPLES_MAX: Final = 64
WAY_SLACK_US: Final = 100
"""Ways that differ by less are equally good: the jitter of a UART's FIFO."""
SPAN_LEAST_US: Final = 3_000_000
"""Drift is fitted over this at least: 300 us of jitter are 100 ppm of it."""
DRIFT_MAX: Final = 0.1
"""An RC oscillator is 5 % off at worst, QEMU's SysTick was measured 2 % off; beyond 10 % it is no clock."""
JUMP_SLACK_US: Final = 5_000
TIME_US_MAX: Final = 1 << 62


class ClockFit:
    """The line through the last TIME answers, as microseconds.

    Attributes:
        jumps: how often the board's clock was found to have jumped.
        implausible: answers that contradict themselves.
    """

    def __init__(self) -> None:
        self.jumps = 0
        self.implausible = 0
        self._restart()

    def _restart(self) -> None:
        self._samples: deque[tuple[int, int, int]] = deque(maxlen=SAMPLES_MAX)  # board, host - board, way
        self._doubts = 0
        self._last_us = 0
        self._origin = 0
        self._offset = 0.0
        self._drift = 0.0

    def reset(self) -> None:
        """The board restarted: its clock begins anew."""
        self._restart()

    @property
    def known(self) -> bool:
        """Whether times can be turned."""
        return bool(self._samples)

    @property
    def samples(self) -> int:
        """Answers kept."""
        return len(self._samples)

    @property
    def error_us(self) -> float | None:
        """How far off a time may be: half of the shortest way there and back."""
        return min(way for _, _, way in self._samples) / 2 if self._samples else None

    @property
    def drift_ppm(self) -> float:
        """Host microseconds that pass in a million of the board's, less a million."""
        return self._drift * 1e6

    def add(self, t1_us: int, t2_us: int, t3_us: int, t4_us: int) -> bool:
        """Take an answer: asked at t1, there at t2 (the board's clock), left at t3, here at t4.

        Returns:
            False when the board's clock was found to have jumped.
        """
        way = (t4_us - t1_us) - (t3_us - t2_us)
        if not 0 <= t2_us <= t3_us < TIME_US_MAX or way < 0:
            self.implausible += 1
            return True
        board = (t2_us + t3_us) // 2
        offset = (t1_us + t4_us) // 2 - board
        steady = True
        if self._samples and self._jumped(board, offset, way):
            self._doubts += 1
            if self._doubts < 2 and board >= self._last_us:
                return True  # one odd answer: the next one decides
            self.jumps += 1
            self._restart()
            steady = False
        self._doubts = 0
        self._last_us = board
        self._samples.append((board, offset, way))
        self._fit()
        return steady

    def _jumped(self, board: int, offset: int, way: int) -> bool:
        if board < self._last_us:
            return True
        told = self._offset + self._drift * (board - self._origin)
        unsure = 0.001 if self._drift else DRIFT_MAX
        return abs(offset - told) > way + JUMP_SLACK_US + unsure * (board - self._last_us)

    def _fit(self) -> None:
        shortest = min(way for _, _, way in self._samples)
        self._origin, base, _ = self._samples[-1]
        x = np.array([board - self._origin for board, _, _ in self._samples], np.float64)
        y = np.array([offset - base for _, offset, _ in self._samples], np.float64)
        late = np.array([way - shortest for _, _, way in self._samples], np.float64)
        weights = 1 / (WAY_SLACK_US + late) ** 2  # an answer is off by half of what it was late, at most
        weights /= weights.sum()
        middle = float(weights @ x)
        self._drift = 0.0
        if len(x) >= 4 and x[-1] - x[0] >= SPAN_LEAST_US:
            spread = weights * (x - middle)
            slope = float(spread @ y) / float(spread @ (x - middle))
            self._drift = min(max(slope, -DRIFT_MAX), DRIFT_MAX)
        self._offset = base + float(weights @ y) - self._drift * middle

    @overload
    def host_us(self, board_us: int) -> float: ...
    @overload
    def host_us(self, board_us: NDArray[np.int64]) -> NDArray[np.floating]: ...
    def host_us(self, board_us: int | NDArray[np.int64]) -> float | NDArray[np.floating]:
        """A time of the board, or many, on the host's clock; ask `known` first."""
        since = board_us - self._origin
        return self._origin + self._offset + since * (1 + self._drift)
