"""What the journal's writing costs a flash card: bytes a day, a budget for them, and what follows when it is used up.

It owns the arithmetic: no files, no clock. Whoever writes tells what was written and asks how long to wait; it also
keeps `state` somewhere, so that a restart is no way around the budget.

A card wears by what its blocks are written with, not by what was asked for. The device's bytes are an estimate: what
was written, and `SYNC_BYTES` for every fsync, because the last page of a file and the file system's own journal go
with each. What the card's controller adds to that is not known here.

Rules
- The last 24 hours count, in steps of an hour, by a clock that never steps back. Time that the device was off is not
  known and does not count: after a restart the hours before it stand as if they had just passed.
- While they are over the budget the interval between commits doubles, every 10 minutes, up to 10 minutes; below nine
  tenths of it, it halves in the same steps. Without a budget the interval stays as it is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from .errors import ConfigError
from .types import Json

SYNC_BYTES: Final = 4096  # estimated cost of an fsync beside the bytes written
HOUR_S: Final = 3600.0
HOURS: Final = 24
STEP_S: Final = 600.0  # between two changes of the interval
INTERVAL_S_MAX: Final = 600.0
_DOUBLE_MIN_S: Final = 1.0  # where doubling begins when the configured interval is shorter
_RELAX: Final = 0.9
_COUNT_MAX: Final = 1 << 53


@dataclass(slots=True)
class _Hour:
    written_bytes: int = 0
    syncs: int = 0

    @property
    def device_bytes(self) -> int:
        return self.written_bytes + self.syncs * SYNC_BYTES


class Wear:
    """The accounting of one store.

    Args:
        bytes_per_day: budget of estimated device bytes in any 24 hours; 0: none.
        interval_s: configured time between commits, 0 to 3600.
        now_s: monotonic time.

    Raises:
        ConfigError: the budget is negative.
    """

    def __init__(self, bytes_per_day: int, interval_s: float, now_s: float) -> None:
        if bytes_per_day < 0:
            raise ConfigError(f"wear_bytes_per_day is {bytes_per_day}, expected 0 (none) or more")
        self._budget, self._base_s = bytes_per_day, interval_s
        self._hours: deque[_Hour] = deque([_Hour()], maxlen=HOURS + 1)  # the newest last, not full yet
        self._hour_s = self._step_s = now_s  # when the newest hour began, and when the interval was last judged
        self._doublings = 0

    def note(self, now_s: float, written_bytes: int, syncs: int) -> None:
        """Count bytes that were given to the disk, and the fsyncs."""
        self._advance(now_s)
        self._hours[-1].written_bytes += written_bytes
        self._hours[-1].syncs += syncs

    def interval_s(self, now_s: float) -> float:
        """The time between commits that the budget allows now."""
        self._advance(now_s)
        if self._budget and now_s - self._step_s >= STEP_S:
            self._step_s = now_s
            used = self.day_bytes
            if used > self._budget and self._stretched_s < INTERVAL_S_MAX:
                self._doublings += 1
            elif used < _RELAX * self._budget and self._doublings:
                self._doublings -= 1
        return self._stretched_s

    def rebase(self, interval_s: float) -> None:
        """Take another configured time between commits; what the budget has made of it stays a multiple of it."""
        self._base_s = interval_s

    @property
    def _stretched_s(self) -> float:
        if not self._doublings:
            return self._base_s
        longest_s = max(INTERVAL_S_MAX, self._base_s)
        return float(min(longest_s, max(self._base_s, _DOUBLE_MIN_S) * 2**self._doublings))

    def _advance(self, now_s: float) -> None:
        passed = int((now_s - self._hour_s) // HOUR_S)
        if passed > 0:
            self._hour_s += passed * HOUR_S
            self._hours.extend(_Hour() for _ in range(min(passed, HOURS + 1)))

    @property
    def day_bytes(self) -> int:
        """Estimated device bytes of the last 24 hours and the part of an hour that has begun."""
        return sum(hour.device_bytes for hour in self._hours)

    def report(self, now_s: float) -> dict[str, Json]:
        """Measured and projected bytes, for people.

        Returns:
            `measured_s`: time that the figures cover, at most 25 hours; `written_bytes`, `syncs`,
            `device_bytes_estimate` in it; `projected_bytes_per_day`: the estimate scaled to a day, None in the first
            minute; `budget_bytes_per_day`: 0 without one; `commit_interval_s` now; `stretched`: whether the budget has
            made it longer.
        """
        self._advance(now_s)
        measured_s = (len(self._hours) - 1) * HOUR_S + now_s - self._hour_s
        used = self.day_bytes
        return {
            "measured_s": measured_s,
            "written_bytes": sum(hour.written_bytes for hour in self._hours),
            "syncs": sum(hour.syncs for hour in self._hours),
            "device_bytes_estimate": used,
            "projected_bytes_per_day": round(used * HOURS * HOUR_S / measured_s) if measured_s >= 60.0 else None,
            "budget_bytes_per_day": self._budget,
            "commit_interval_s": self._stretched_s,
            "stretched": self._doublings > 0,
        }

    def state(self) -> dict[str, Json]:
        """What `restore` needs to go on after a restart."""
        return {"hours": [[hour.written_bytes, hour.syncs] for hour in self._hours], "doublings": self._doublings}

    def restore(self, state: Json) -> bool:
        """Go on where a `state` was taken; call it before the first `note`.

        Returns:
            False when it is no such state: the accounting begins anew.
        """
        if not isinstance(state, dict):
            return False
        hours, doublings = state.get("hours"), state.get("doublings")
        if not isinstance(hours, list) or not 1 <= len(hours) <= HOURS + 1 or not _is_count(doublings, 30):
            return False
        if not all(isinstance(hour, list) and len(hour) == 2 and all(map(_is_count, hour)) for hour in hours):
            return False
        pairs: Any = hours
        self._hours.clear()
        self._hours.extend(_Hour(written_bytes, syncs) for written_bytes, syncs in pairs)
        self._doublings = doublings if self._budget and isinstance(doublings, int) else 0
        return True


def _is_count(value: object, value_max: int = _COUNT_MAX) -> bool:
    return type(value) is int and 0 <= value <= value_max
