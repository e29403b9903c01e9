"""Mahalanobis distance of a rolling mean of feature vectors from the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tinylcm._ext.drift import RollingMahalanobis

from ..errors import ConfigError
from .latch import Latch


class Mahalanobis:
    """How far the mean of the newest `window` vectors lies from the reference, in its own units of scatter.

    distance = sqrt(m' R^-1 m), m the rolling mean of (x - mean) / std, R the reference's correlation matrix, shrunk
    towards the identity (Mahalanobis 1936; shrinkage after Ledoit and Wolf 2004, with a fixed weight).

    Args:
        mean, std: the reference's, of d features; std > 0.
        correlation: the reference's d x d correlation matrix; None for independent features.
        threshold: distance above which it alarms.
        window: newest vectors that are averaged.
        shrinkage: weight of the identity, 0 to 1.

    Raises:
        ConfigError: a parameter is out of range or the matrix is no correlation matrix.

    A vector with a value that is not finite is passed over. It alarms once when the distance rises above the
    threshold and arms again when it has fallen below half of it.

    >>> import numpy as np
    >>> detector = Mahalanobis([0.0, 0.0], [1.0, 1.0], None, threshold=2.0, window=5)
    >>> rows = np.vstack([np.zeros((10, 2)), np.full((5, 2), 2.0)])
    >>> [index for index, row in enumerate(rows) if detector.update(row)]
    [13]
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        correlation: Sequence[Sequence[float]] | None,
        threshold: float,
        window: int = 50,
        shrinkage: float = 0.05,
    ) -> None:
        if not threshold > 0 or window < 1 or not 0 <= shrinkage <= 1 or len(mean) != len(std) or len(mean) < 1:
            raise ConfigError("Mahalanobis: expected threshold > 0, window >= 1, 0 <= shrinkage <= 1, d means and stds")
        matrix = np.eye(len(mean)) if correlation is None else np.asarray(correlation, dtype=np.float64)
        if matrix.shape != (len(mean), len(mean)) or not np.allclose(matrix, matrix.T) or not np.isfinite(matrix).all():
            raise ConfigError(f"Mahalanobis: expected a symmetric {len(mean)} x {len(mean)} correlation matrix")
        try:
            inverse = np.linalg.inv((1 - shrinkage) * matrix + shrinkage * np.eye(len(mean)))
            self._core = RollingMahalanobis(
                np.asarray(mean, dtype=np.float64),
                np.asarray(std, dtype=np.float64),
                np.ascontiguousarray(inverse),
                int(window),
            )
        except (ValueError, np.linalg.LinAlgError) as error:
            raise ConfigError(f"Mahalanobis: {error}") from error
        self.window = int(window)
        self._latch = Latch(threshold)

    def update(self, row: NDArray[np.float64]) -> bool:
        """Take one vector `[d]`; True when it raises the alarm."""
        self._core.update(np.ascontiguousarray(row, dtype=np.float64))
        return self._latch.judge(self._core.distance)

    @property
    def threshold(self) -> float:
        """The distance above which it alarms."""
        return self._latch.threshold

    @property
    def drift_detected(self) -> bool:
        """Whether the last vector raised the alarm."""
        return self._latch.raised

    @property
    def statistic(self) -> float:
        """The present distance; NaN until the window is full."""
        return self._core.distance

    @property
    def worst(self) -> int:
        """The feature whose rolling mean is most deviations off."""
        means = [abs(value) if not math.isnan(value) else -1.0 for value in self._core.means()]
        return means.index(max(means))

    def reset(self) -> None:
        """Forget the window."""
        self._core.clear()
        self._latch.reset()
