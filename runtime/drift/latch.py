"""The life of an alarm on a statistic that has memory: raised once, armed again when it has calmed down."""

from __future__ import annotations

from typing import Final

REARM: Final = 0.5  # share of the threshold below which it is armed again


class Latch:
    """Says True once when a statistic rises above a threshold, and not again before it fell below half of it.

    A NaN (a window that is not full yet) changes nothing.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.raised = False
        self._latched = False

    def judge(self, statistic: float) -> bool:
        """Take the present statistic."""
        self.raised = not self._latched and statistic > self.threshold
        if self.raised:
            self._latched = True
        elif self._latched and statistic < REARM * self.threshold:
            self._latched = False
        return self.raised

    def reset(self) -> None:
        """Arm again."""
        self.raised = self._latched = False
