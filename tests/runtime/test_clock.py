"""The machine's clocks."""

from __future__ import annotations

import time

from tinylcm.clock import SystemClock


def test_the_system_clock_tells_one_boot_and_never_steps_back() -> None:
    clock, again = SystemClock(), SystemClock()
    assert clock.boot == again.boot and len(clock.boot) == 36
    assert clock.boot_ns() <= again.boot_ns()
    assert clock.monotonic_s() <= again.monotonic_s()
    assert abs(clock.wall_s() - time.time()) < 5
