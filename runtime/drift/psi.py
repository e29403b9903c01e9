"""Population stability index over a rolling window, for numbers in bins and for categories."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from tinylcm._ext.drift import RollingHistogram

from ..errors import ConfigError
from ..types import HistogramPair
from .latch import Latch


class CategoricalPSI:
    """PSI of the newest `window` categories against a reference, exact at every step.

    PSI = sum over categories of (p - q) ln(p / q), the symmetric Kullback-Leibler divergence of the smoothed shares
    (Kullback and Leibler 1951; known under this name from credit scoring, Siddiqi 2006). `smoothing` is added to
    each count of both sides.

    Args:
        reference: count or share of each category, not all zero.
        threshold: value above which it alarms; 0.2 is credit scoring's habit and fits independent samples only.
        window: newest values that are compared.
        smoothing: pseudo-count, > 0.
        labels: the categories' names, for the evidence.

    Raises:
        ConfigError: a parameter is out of range.

    It alarms once when the index rises above the threshold and arms again when it has fallen below half of it.

    >>> detector = CategoricalPSI([50, 50], threshold=0.2, window=20)
    >>> stream = [0, 1] * 20 + [0] * 20
    >>> [index for index, value in enumerate(stream) if detector.update(value)]
    [48]
    """

    def __init__(
        self,
        reference: Sequence[float],
        threshold: float = 0.2,
        window: int = 200,
        smoothing: float = 0.5,
        labels: Sequence[str] = (),
    ) -> None:
        if not threshold > 0:
            raise ConfigError(f"PSI: threshold is {threshold}, expected more than 0")
        try:
            self._core = RollingHistogram(np.asarray(reference, dtype=np.float64), int(window), float(smoothing))
        except ValueError as error:
            raise ConfigError(f"PSI: {error}") from error
        self.window = int(window)
        self._reference = tuple(float(count) for count in reference)
        self._labels = tuple(labels)
        self._latch = Latch(threshold)

    def update(self, category: int) -> bool:
        """Take one category's index; True when this one raises the alarm."""
        self._core.push(category)
        return self._latch.judge(self._core.psi)

    @property
    def threshold(self) -> float:
        """The index above which it alarms."""
        return self._latch.threshold

    @property
    def drift_detected(self) -> bool:
        """Whether the last value raised the alarm."""
        return self._latch.raised

    @property
    def statistic(self) -> float:
        """The present index; NaN until the window is full."""
        return self._core.psi

    @property
    def suspect(self) -> int:
        """Index of the oldest value in the window that is compared."""
        return max(0, self._core.seen - self._core.window)

    @property
    def histogram(self) -> HistogramPair:
        """The reference's counts beside the window's."""
        return HistogramPair(self._reference, tuple(map(float, self._core.counts())), labels=self._labels)

    def reset(self) -> None:
        """Forget the window."""
        self._core.clear()
        self._latch.reset()


class PSI(CategoricalPSI):
    """PSI of a number over the bins of a reference histogram: see `CategoricalPSI`.

    Args:
        edges: rising bin edges, one more than counts; what lies outside counts in the outermost bins, and a
            value on an edge counts below it.
        counts: the reference's count or share in each bin.
        threshold, window, smoothing: as for `CategoricalPSI`.

    NaN and infinite values are passed over.
    """

    def __init__(
        self,
        edges: Sequence[float],
        counts: Sequence[float],
        threshold: float = 0.2,
        window: int = 200,
        smoothing: float = 0.5,
    ) -> None:
        super().__init__(counts, threshold, window, smoothing)
        self._edges = tuple(float(edge) for edge in edges)
        if len(self._edges) != len(self._reference) + 1 or any(not b > a for a, b in pairwise(self._edges)):
            raise ConfigError("PSI: edges must rise and be one more than the counts")
        self._inner = np.asarray(self._edges[1:-1], dtype=np.float64)

    def update(self, x: float) -> bool:
        """Take one number; True when this one raises the alarm."""
        if x - x != 0.0:  # NaN or infinite
            return False
        return super().update(int(np.searchsorted(self._inner, x, side="left")))

    @property
    def histogram(self) -> HistogramPair:
        """The reference's counts beside the window's, with the edges of their bins."""
        return HistogramPair(self._reference, tuple(map(float, self._core.counts())), self._edges)
