"""ADWIN: is the mean of the newest values different from that of the older ones?"""

from __future__ import annotations

from tinylcm._ext.drift import ADWINCore

from ..errors import ConfigError


class ADWIN:
    """Adaptive windowing (Bifet and Gavaldà, SIAM SDM 2007, doi 10.1137/1.9781611972771.42).

    Parameters, names and decisions are river's (0.26), value for value; like river's, it drops the whole window at
    the value after an alarm.

    Args:
        delta: confidence; smaller means fewer false alarms and later true ones, 0 < delta < 1.
        clock: values between two looks; 1 is the fastest to detect and the dearest.
        max_buckets: buckets of one size.
        min_window_length: least length of either side of a cut.
        grace_period: values before the first look.

    Raises:
        ConfigError: a parameter is out of range.

    NaN and infinite values are passed over.

    >>> import random
    >>> rng = random.Random(12345)
    >>> detector = ADWIN()
    >>> stream = [rng.choice([0, 1]) for _ in range(1000)] + [rng.choice([4, 5, 6, 7]) for _ in range(1000)]
    >>> [index for index, value in enumerate(stream) if detector.update(value)]
    [1023]
    """

    def __init__(
        self,
        delta: float = 0.002,
        clock: int = 32,
        max_buckets: int = 5,
        min_window_length: int = 5,
        grace_period: int = 10,
    ) -> None:
        if not 0 < delta < 1 or clock < 1 or not 1 <= max_buckets <= 1000 or min_window_length < 1 or grace_period < 0:
            raise ConfigError(
                "ADWIN: expected 0 < delta < 1, clock >= 1, 1 <= max_buckets <= 1000, min_window_length >= 1, "
                "grace_period >= 0"
            )
        self._core = ADWINCore(delta, clock, max_buckets, min_window_length, grace_period)
        self.update = self._core.update  # the compiled method itself: no Python frame a value

    @property
    def drift_detected(self) -> bool:
        """Whether the last value raised the alarm."""
        return self._core.drift_detected

    @property
    def width(self) -> int:
        """Values in the window."""
        return int(self._core.width)

    @property
    def total(self) -> float:
        """Their sum."""
        return self._core.total

    @property
    def variance(self) -> float:
        """The sum of their squared deviations, as river's `variance`."""
        return self._core.variance

    @property
    def statistic(self) -> float:
        """Difference of the two means at the last cut that was taken."""
        return self._core.statistic

    @property
    def threshold(self) -> float:
        """The bound that this difference went over."""
        return self._core.bound

    @property
    def suspect(self) -> int:
        """Index of the oldest value that is still in the window: where the new mean begins."""
        return self._core.seen - int(self._core.width)

    def reset(self) -> None:
        """Begin anew with an empty window."""
        self._core.reset()
