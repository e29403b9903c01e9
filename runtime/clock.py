"""Time, as a value that is passed in.

Durations, leases and timeouts use `monotonic_s`; records are stamped with the boot and the time since it
(`boot_ns`), because a device without a clock battery does not know the wall time when it starts. `wall_s` is only
ever a claim, stored as an anchor beside `boot_ns`.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """What the library asks of time."""

    @property
    def boot(self) -> str:
        """Identity of this boot of the machine; differs after each restart."""
        ...

    def boot_ns(self) -> int:
        """Nanoseconds since boot, counting suspend; never steps back within a boot."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never step back, for durations."""
        ...

    def wall_s(self) -> float:
        """Unix time in seconds as this machine believes it to be; may be years off."""
        ...


def _read_boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return str(uuid.uuid4())  # not Linux: each process counts as a boot of its own


class SystemClock:
    """The machine's own clocks."""

    def __init__(self) -> None:
        self._boot = _read_boot()

    @property
    def boot(self) -> str:
        """The kernel's boot id."""
        return self._boot

    def boot_ns(self) -> int:
        """CLOCK_BOOTTIME in nanoseconds."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def monotonic_s(self) -> float:
        """CLOCK_MONOTONIC in seconds."""
        return time.monotonic()

    def wall_s(self) -> float:
        """CLOCK_REALTIME in seconds."""
        return time.time()
