"""A clock that tests move by hand."""

from __future__ import annotations


class ManualClock:
    """Time that passes only when a test says so; the wall clock may be years off."""

    def __init__(self, *, wall_s: float = 1_800_000_000.0, boot: str = "boot-1") -> None:
        self._now_s = 1000.0
        self._wall_s = wall_s
        self._boot = boot

    @property
    def boot(self) -> str:
        return self._boot

    def boot_ns(self) -> int:
        return int(self._now_s * 1e9)

    def monotonic_s(self) -> float:
        return self._now_s

    def wall_s(self) -> float:
        return self._wall_s + self._now_s

    def advance(self, seconds: float) -> None:
        self._now_s += seconds

    def jump_wall(self, seconds: float) -> None:
        self._wall_s += seconds
