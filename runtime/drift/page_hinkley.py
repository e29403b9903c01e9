"""Page-Hinkley: has the mean of a signal moved?"""

from __future__ import annotations

from typing import Literal

from tinylcm._ext.drift import PageHinkleyCore

from ..errors import ConfigError


class PageHinkley:
    """Sequential test for a change of the mean (Page, Biometrika 1954), with forgetting.

    Parameters, names and decisions are river's (0.26), value for value. The defaults are river's too and not scale
    free: on standard normal values they raise a false alarm every 1,700 values or so; a package's calibrated
    threshold is the one to use.

    Args:
        min_instances: values before the first decision.
        delta: the drift that is tolerated, in units of the signal.
        threshold: excursion that raises the alarm, in units of the signal.
        alpha: forgetting factor, 0 < alpha <= 1.
        mode: `up`, `down` or `both`: which change counts.

    Raises:
        ConfigError: a parameter is out of range.

    NaN and infinite values are passed over. After an alarm the next value begins a new test.

    >>> import random
    >>> rng = random.Random(12345)
    >>> detector = PageHinkley()
    >>> stream = [rng.choice([0, 1]) for _ in range(1000)] + [rng.choice([4, 5, 6, 7]) for _ in range(1000)]
    >>> [index for index, value in enumerate(stream) if detector.update(value)]
    [1009]
    """

    def __init__(
        self,
        min_instances: int = 30,
        delta: float = 0.005,
        threshold: float = 50.0,
        alpha: float = 1 - 0.0001,
        mode: Literal["up", "down", "both"] = "both",
    ) -> None:
        if mode not in ("up", "down", "both"):
            raise ConfigError(f"PageHinkley: mode is {mode!r}, expected up, down or both")
        if min_instances < 1 or not 0 < alpha <= 1 or not threshold > 0 or delta != delta:
            raise ConfigError("PageHinkley: expected min_instances >= 1, 0 < alpha <= 1, threshold > 0, a finite delta")
        self.threshold = threshold
        self._core = PageHinkleyCore(min_instances, delta, threshold, alpha, mode != "down", mode != "up")
        self.update = self._core.update  # the compiled method itself: no Python frame a value

    @property
    def drift_detected(self) -> bool:
        """Whether the last value raised the alarm."""
        return self._core.drift_detected

    @property
    def statistic(self) -> float:
        """The present excursion, to compare with `threshold`."""
        return self._core.statistic

    @property
    def suspect(self) -> int:
        """Index of the value after which the last alarm's excursion began."""
        return self._core.suspect

    def reset(self) -> None:
        """Begin anew."""
        self._core.reset()
