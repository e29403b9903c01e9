"""Kolmogorov-Smirnov distance of a rolling window from reference histograms, for several signals at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from tinylcm._ext.drift import BlockHistogram

from ..errors import ConfigError
from ..types import HistogramPair
from .latch import Latch


class BinnedKS:
    """Greatest difference between the cumulated shares of the newest `window` rows and of a reference.

    The two-sample statistic of Kolmogorov (1933) and Smirnov (1939), taken at the edges of the reference's bins; with
    edges at quantiles it is exact to a bin's share. Compared is the worst of the signals.

    Args:
        edges: for each signal its rising bin edges; what lies outside counts in the outermost bins, a value on an
            edge below it.
        counts: for each signal the reference's count or share in each bin.
        threshold: distance above which it alarms, 0 to 1.
        window: newest rows that are compared.

    Raises:
        ConfigError: a parameter is out of range.

    Values that are not finite are passed over. It alarms once when the distance rises above the threshold and arms
    again when it has fallen below half of it.

    >>> import numpy as np
    >>> detector = BinnedKS([[0.0, 1.0, 2.0]], [[50, 50]], threshold=0.4, window=10)
    >>> rows = np.array([[0.5], [1.5]] * 10 + [[1.5]] * 10)
    >>> [index for index in range(30) if detector.update(rows[index : index + 1])]
    [28]
    """

    def __init__(
        self,
        edges: Sequence[Sequence[float]],
        counts: Sequence[Sequence[float]],
        threshold: float,
        window: int = 500,
    ) -> None:
        if not 0 < threshold < 1 or window < 1 or len(edges) < 1 or len(edges) != len(counts):
            raise ConfigError("BinnedKS: expected 0 < threshold < 1, window >= 1, and counts for each signal's edges")
        for line, bins in zip(edges, counts, strict=True):
            if len(line) != len(bins) + 1 or len(bins) < 2 or any(not b > a for a, b in pairwise(line)):
                raise ConfigError("BinnedKS: edges must rise and be one more than the counts, of two bins at least")
        widest = max(len(bins) for bins in counts)
        # Signals with fewer bins are filled up with bins beyond infinity, which nothing ever enters.
        inner = np.full((len(edges), widest - 1), math.inf)
        shares = np.zeros((len(edges), widest))
        for index, (line, bins) in enumerate(zip(edges, counts, strict=True)):
            inner[index, : len(bins) - 1] = line[1:-1]
            shares[index, : len(bins)] = bins
        try:
            self._core = BlockHistogram(inner, shares, int(window), 1.0)
        except ValueError as error:
            raise ConfigError(f"BinnedKS: {error}") from error
        self.window = int(window)
        self._edges = [tuple(map(float, line)) for line in edges]
        self._counts = [tuple(map(float, bins)) for bins in counts]
        self._latch = Latch(threshold)
        self._worst, self._statistic = 0, math.nan

    def update(self, rows: NDArray[np.floating]) -> bool:
        """Take rows `[n, signals]`; True when these raise the alarm. Values count as float32, as models see them."""
        self._core.update(np.ascontiguousarray(rows, dtype=np.float32))
        self._worst, self._statistic = self._core.worst_ks()
        return self._latch.judge(self._statistic)

    @property
    def threshold(self) -> float:
        """The distance above which it alarms."""
        return self._latch.threshold

    @property
    def drift_detected(self) -> bool:
        """Whether the last rows raised the alarm."""
        return self._latch.raised

    @property
    def worst(self) -> int:
        """The signal that is farthest off."""
        return self._worst

    @property
    def statistic(self) -> float:
        """The worst signal's distance; NaN until the window is full."""
        return self._statistic

    def histogram(self, signal: int) -> HistogramPair:
        """A signal's reference beside the window's counts."""
        bins = len(self._counts[signal])
        return HistogramPair(
            self._counts[signal], tuple(map(float, self._core.counts(signal)[:bins])), self._edges[signal]
        )

    def reset(self) -> None:
        """Forget the window."""
        self._core.clear()
        self._worst, self._statistic = 0, math.nan
        self._latch.reset()
