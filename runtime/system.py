"""What this machine says of itself: memory, processor, temperature, disk, clock. None where it is silent."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from .clock import Clock
from .errors import DeviceError

_BYTES_MAX: Final = 4096  # of one file of /sys
_ZONES_MAX: Final = 64
_CPU_ZONES: Final = ("cpu-thermal", "cpu_thermal", "x86_pkg_temp", "soc_thermal")
_PI_THROTTLED: Final = "sys/devices/platform/soc/soc:firmware/get_throttled"
_PI_NOW: Final = 0x0000F  # under-voltage, capped, throttled, soft limit: now; the same bits 16 higher: since the boot


@dataclass(frozen=True, slots=True)
class SystemReading:
    """One look at the machine and at this process.

    Attributes:
        rss_bytes, threads, open_files, cpu_percent: of this process; the last since the look before.
        cpu_temperature_c: the processor's sensor, or the hottest there is.
        throttled: the firmware or a cooling device holds the processor back now.
        throttled_since_boot: it did at some time; Raspberry Pi only.
        cpu_frequency_hz, load1, memory_available_bytes, uptime_s: of the machine.
        disk_free_bytes, disk_total_bytes: of the data folder's file system.
        clock_offset_s: the server's time less this machine's, at the last sync.
    """

    rss_bytes: int
    threads: int
    open_files: int | None
    cpu_percent: float
    cpu_temperature_c: float | None
    throttled: bool | None
    throttled_since_boot: bool | None
    cpu_frequency_hz: float | None
    load1: float | None
    memory_available_bytes: int
    uptime_s: float
    disk_free_bytes: int | None
    disk_total_bytes: int | None
    clock_offset_s: float | None


class SystemProbe:
    """Reads the machine. A look takes about a millisecond: not for the hot route.

    Args:
        folder: the data folder, whose disk is looked at.
        clock: uptime.
        root: of the file system; another one in tests.
    """

    def __init__(self, folder: Path, clock: Clock, root: Path = Path("/")) -> None:
        self._folder, self._clock, self._root = folder, clock, root
        self._process: psutil.Process | None = None
        with suppress(OSError, psutil.Error):
            self._open().cpu_percent()  # only sets the mark that the next call measures from
        self.clock_offset_s: float | None = None

    def _open(self) -> psutil.Process:
        if self._process is None:
            self._process = psutil.Process()
        return self._process

    def read(self) -> SystemReading:
        """Look once.

        Raises:
            DeviceError: the system does not say what this process takes.
        """
        try:
            return self._look(self._open())
        except (OSError, psutil.Error) as error:
            raise DeviceError(f"the system does not say what this process takes: {error}") from error

    def _look(self, process: psutil.Process) -> SystemReading:
        throttled, since_boot = self._throttled()
        free, total = self._disk()
        return SystemReading(
            rss_bytes=process.memory_info().rss,
            threads=process.num_threads(),
            open_files=_open_files(),
            cpu_percent=process.cpu_percent(),
            cpu_temperature_c=self._temperature(),
            throttled=throttled,
            throttled_since_boot=since_boot,
            cpu_frequency_hz=self._frequency(),
            load1=os.getloadavg()[0],
            memory_available_bytes=psutil.virtual_memory().available,
            uptime_s=self._clock.boot_ns() / 1e9,
            disk_free_bytes=free,
            disk_total_bytes=total,
            clock_offset_s=self.clock_offset_s,
        )

    def _read(self, path: str) -> str | None:
        """A small file's text; None when it is not there or cannot be read."""
        try:
            with (self._root / path).open("rb") as file:
                return file.read(_BYTES_MAX).decode("ascii", "replace").strip()
        except OSError:
            return None

    def _number(self, path: str) -> float | None:
        text = self._read(path)
        try:
            return None if text is None else float(text)
        except ValueError:
            return None

    def _temperature(self) -> float | None:
        hottest: float | None = None
        for index in range(_ZONES_MAX):
            kind = self._read(f"sys/class/thermal/thermal_zone{index}/type")
            if kind is None:
                break
            value = self._number(f"sys/class/thermal/thermal_zone{index}/temp")
            if value is None or not -100_000 < value < 300_000:
                continue
            if kind in _CPU_ZONES:
                return value / 1000
            hottest = value if hottest is None else max(hottest, value)
        return None if hottest is None else hottest / 1000

    def _throttled(self) -> tuple[bool | None, bool | None]:
        text = self._read(_PI_THROTTLED)
        if text is not None:
            try:
                bits = int(text, 16)
            except ValueError:
                return None, None
            return bool(bits & _PI_NOW), bool(bits & (_PI_NOW << 16))
        states = []
        for index in range(_ZONES_MAX):
            value = self._number(f"sys/class/thermal/cooling_device{index}/cur_state")
            if value is None:
                break
            kind = self._read(f"sys/class/thermal/cooling_device{index}/type") or ""
            if "fan" not in kind.lower():
                states.append(value > 0)
        return (any(states) if states else None), None

    def _frequency(self) -> float | None:
        value = self._number("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
        return None if value is None else value * 1000

    def _disk(self) -> tuple[int | None, int | None]:
        try:
            usage = os.statvfs(self._folder)
        except OSError:
            return None, None
        return usage.f_bavail * usage.f_frsize, usage.f_blocks * usage.f_frsize


def _open_files() -> int | None:
    try:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        return None
