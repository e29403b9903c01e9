"""When a device may send its details: on links that cost by the byte, and at hours when nobody else needs them.

It decides and counts; it knows no clock, file or socket. Events and the desired state always travel: an alarm that
waits for the night is none. What may wait are metrics and samples.

Rules
- The hours are of the local time of day, as the server's clock corrects it. While the time is not known they are left
  out, and `details_interval_s` alone holds: a device without a clock must not fall silent.
- On a metered link details go once in `details_interval_s`; without one they go whenever there is something.
- The day's bytes are those of the last 24 hours by a clock that never jumps, in steps of an hour.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from .errors import ConfigError

HOUR_S: Final = 3600.0
HOURS: Final = 24
MINUTES: Final = 24 * 60
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


def parse_hours(text: str) -> tuple[tuple[int, int], ...]:
    """Hours such as `01:00-05:00, 22:30-23:30` as minutes of the day; an end before its begin is on the next day.

    Raises:
        ConfigError: it is none.
    """
    found = []
    for part in filter(None, (item.strip() for item in text.split(","))):
        match = _HOURS.fullmatch(part)
        if match is None:
            raise ConfigError(f"{part!r:.40} are no hours; expected such as 01:00-05:00, with commas between several")
        begin, end = 60 * int(match[1]) + int(match[2]), 60 * int(match[3]) + int(match[4])
        if begin == end:
            raise ConfigError(f"{part!r:.40} are no time at all; leave it empty for the whole day")
        found.append((begin, end))
    return tuple(found)


@dataclass(slots=True)
class Schedule:
    """What may be sent now.

    Args:
        metered: whether the link costs by the byte.
        details_interval_s: how often details may go on a metered link, or while the time is not known.
        details_hours: when they may go at all, see `parse_hours`; empty: always.
        bytes_per_day: of requests and answers in 24 hours, beyond which details wait; 0: no bound.
    """

    metered: bool = False
    details_interval_s: float = 6 * HOUR_S
    details_hours: tuple[tuple[int, int], ...] = ()
    bytes_per_day: int = 0
    _details_s: float = -float("inf")  # when details went last
    _hour_s: float = -float("inf")
    _hours: deque[int] = field(default_factory=lambda: deque([0], maxlen=HOURS + 1))

    def allows_details(self, now_s: float, minute: int | None) -> bool:
        """Whether details may go now.

        Args:
            now_s: monotonic time.
            minute: of the local day, 0 to 1439, or None while that is not known.
        """
        if self.bytes_per_day and self.day_bytes(now_s) >= self.bytes_per_day:
            return False
        if self.details_hours and minute is not None and not any(_is_in(minute, hours) for hours in self.details_hours):
            return False
        if self.metered or (self.details_hours and minute is None):
            return now_s - self._details_s >= self.details_interval_s
        return True

    def note(self, now_s: float, byte_count: int, *, details_ended: bool) -> None:
        """Count what a round trip cost; `details_ended` when no details are left to send."""
        self._advance(now_s)
        self._hours[-1] += byte_count
        if details_ended:
            self._details_s = now_s

    def day_bytes(self, now_s: float) -> int:
        """Bytes of the last 24 hours and the part of an hour that has begun."""
        self._advance(now_s)
        return sum(self._hours)

    def _advance(self, now_s: float) -> None:
        if self._hour_s == -float("inf"):
            self._hour_s = now_s
        passed = int((now_s - self._hour_s) // HOUR_S)
        if passed > 0:
            self._hour_s += passed * HOUR_S
            self._hours.extend([0] * min(passed, HOURS + 1))


def _is_in(minute: int, hours: tuple[int, int]) -> bool:
    begin, end = hours
    return begin <= minute < end if begin < end else minute >= begin or minute < end
