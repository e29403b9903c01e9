"""Whether a new package may stay: its trial over N windows, decided from counts alone.

Rules
- More errors of the model, or more alarms, than allowed end a trial at once.
- Latency and confidence are judged when the windows are complete, over the newest `WINDOWS_JUDGED_MAX` of them: a few
  windows at the start say little.
- A bound of 0 is off. A bound that cannot be judged, such as a factor of a latency that nobody has measured, is off.
- Crashes are counted elsewhere: `slots.boot`.

Nothing here touches a disk, a clock or a pipeline: whoever runs the model counts and asks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WINDOWS_JUDGED_MAX: Final = 1024  # as many as `Metrics.recent` remembers
PASSED: Final = ""


@dataclass(frozen=True, slots=True)
class TrialBounds:
    """What a package must keep to in its trial; 0 turns a bound off, except `windows` and `errors_max`.

    Attributes:
        windows: predictions that it takes, at least 1.
        errors_max: windows on which the model itself may fail.
        latency_p95_us: 95 % of the windows take no longer.
        latency_factor: nor longer than so many times what the package before took.
        confidence_min: the mean confidence is at least this, 0 to 1.
        alarms_max: drift alarms that may be raised.
    """

    windows: int = 20
    errors_max: int = 0
    latency_p95_us: float = 0.0
    latency_factor: float = 0.0
    confidence_min: float = 0.0
    alarms_max: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """What a pipeline has counted since its start: predictions, failures of the model, drift alarms."""

    predictions: int
    failures: int
    alarms: int = 0


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial under way.

    Attributes:
        sha256: of the package on trial.
        start: the counts when it began.
        before_us: the 95th percentile of the latency of the package before; 0 when it is not known.
    """

    sha256: str
    start: Counts
    before_us: float = 0.0

    def judge(self, bounds: TrialBounds, now: Counts, recent: Sequence[tuple[float, float, str]]) -> str | None:
        """What the trial has come to.

        Args:
            bounds: to be kept.
            now: the counts of the same pipeline, not below those at the start.
            recent: its newest predictions as (latency in us, confidence, label), oldest first; those from before the
                trial are left out.

        Returns:
            None while it goes on, `PASSED`, or the reason for which it has failed.
        """
        windows = now.predictions - self.start.predictions
        failures, alarms = now.failures - self.start.failures, now.alarms - self.start.alarms
        if failures > bounds.errors_max:
            return f"the model failed on {failures} windows of its trial, at most {bounds.errors_max} are allowed"
        if bounds.alarms_max and alarms > bounds.alarms_max:
            return f"it raised {alarms} drift alarms in its trial, at most {bounds.alarms_max} are allowed"
        if windows < bounds.windows:
            return None
        judged = recent[-min(windows, WINDOWS_JUDGED_MAX) :]
        return self._too_slow(bounds, judged) or _not_sure(bounds, judged)

    def _too_slow(self, bounds: TrialBounds, judged: Sequence[tuple[float, float, str]]) -> str:
        limits = [limit for limit in (bounds.latency_p95_us, bounds.latency_factor * self.before_us) if limit]
        found = p95([latency for latency, _, _ in judged])
        if not limits or found <= min(limits):
            return PASSED
        return f"95 % of its predictions took up to {found:.0f} us, at most {min(limits):.0f} us are allowed"


def _not_sure(bounds: TrialBounds, judged: Sequence[tuple[float, float, str]]) -> str:
    if not bounds.confidence_min or not judged:
        return PASSED
    mean = math.fsum(confidence for _, confidence, _ in judged) / len(judged)
    # Written so that a mean that is no number fails.
    if mean >= bounds.confidence_min:
        return PASSED
    return f"its mean confidence was {mean:.3f}, at least {bounds.confidence_min:g} is required"


def p95(values: Sequence[float]) -> float:
    """The 95th percentile by nearest rank: the least value that 95 % do not exceed; 0 of none."""
    return sorted(values)[-(-19 * len(values) // 20) - 1] if values else 0.0
