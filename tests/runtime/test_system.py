"""What the machine says of itself, on this one and on file trees of others."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from clocks import ManualClock
from tinylcm.clock import SystemClock
from tinylcm.errors import DeviceError
from tinylcm.system import SystemProbe

PI = "sys/devices/platform/soc/soc:firmware/get_throttled"


def machine(root: Path, **files: str) -> SystemProbe:
    """A probe of a tree with these files; `__` in a name stands for a slash."""
    for name, text in files.items():
        write(root, name.replace("__", "/"), text)
    return SystemProbe(root, ManualClock(), root)


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def zone(root: Path, index: int, kind: str, value: str) -> None:
    write(root, f"sys/class/thermal/thermal_zone{index}/type", kind + "\n")
    write(root, f"sys/class/thermal/thermal_zone{index}/temp", value + "\n")


def test_this_machine_is_read(tmp_path: Path) -> None:
    probe = SystemProbe(tmp_path, SystemClock())
    probe.clock_offset_s = -3.5
    found = probe.read()
    assert 5e6 < found.rss_bytes < psutil.virtual_memory().total
    assert found.threads >= 1 and found.open_files is not None and found.open_files >= 3
    assert found.memory_available_bytes > 0 and found.uptime_s > 0
    disk = os.statvfs(tmp_path)
    assert found.disk_total_bytes == disk.f_blocks * disk.f_frsize
    assert found.disk_free_bytes is not None and 0 < found.disk_free_bytes <= found.disk_total_bytes
    assert found.clock_offset_s == -3.5
    assert found.cpu_percent >= 0


def test_a_machine_that_says_nothing_gives_none(tmp_path: Path) -> None:
    found = SystemProbe(tmp_path / "missing", ManualClock(), tmp_path).read()
    assert (found.cpu_temperature_c, found.throttled, found.throttled_since_boot) == (None, None, None)
    assert (found.cpu_frequency_hz, found.disk_free_bytes, found.clock_offset_s) == (None, None, None)


def test_the_processors_own_sensor_counts(tmp_path: Path) -> None:
    zone(tmp_path, 0, "battery", "71000")
    zone(tmp_path, 1, "cpu-thermal", "48250")
    assert machine(tmp_path).read().cpu_temperature_c == 48.25


def test_without_one_the_hottest_counts(tmp_path: Path) -> None:
    zone(tmp_path, 0, "acpitz", "31000")
    zone(tmp_path, 1, "wifi", "52500")
    assert machine(tmp_path).read().cpu_temperature_c == 52.5


@pytest.mark.parametrize("silly", ["-273150", "300000", "hot", "", "nan", "inf", "9" * 400])
def test_silly_temperatures_are_no_temperatures(tmp_path: Path, silly: str) -> None:
    zone(tmp_path, 0, "cpu-thermal", silly)
    assert machine(tmp_path).read().cpu_temperature_c is None
    zone(tmp_path, 1, "other", "20000")
    assert machine(tmp_path).read().cpu_temperature_c == 20.0


@pytest.mark.parametrize(
    ("text", "now", "since_boot"),
    [("0x0", False, False), ("50005", True, True), ("0x50000", False, True), ("0x4", True, False), ("??", None, None)],
)
def test_a_raspberry_pi_says_whether_it_is_throttled(
    tmp_path: Path, text: str, now: bool | None, since_boot: bool | None
) -> None:
    write(tmp_path, PI, text + "\n")
    found = machine(tmp_path).read()
    assert (found.throttled, found.throttled_since_boot) == (now, since_boot)


def test_elsewhere_a_cooling_device_says_it_and_a_fan_does_not(tmp_path: Path) -> None:
    base = "sys/class/thermal/cooling_device"
    write(tmp_path, f"{base}0/type", "pwm-fan")
    write(tmp_path, f"{base}0/cur_state", "3")
    assert machine(tmp_path).read().throttled is None
    write(tmp_path, f"{base}1/type", "Processor")
    write(tmp_path, f"{base}1/cur_state", "0")
    assert machine(tmp_path).read().throttled is False
    write(tmp_path, f"{base}1/cur_state", "2")
    found = machine(tmp_path).read()
    assert (found.throttled, found.throttled_since_boot) == (True, None)


def test_frequency_and_uptime(tmp_path: Path) -> None:
    probe = machine(tmp_path, sys__devices__system__cpu__cpu0__cpufreq__scaling_cur_freq="1500000\n")
    found = probe.read()
    assert found.cpu_frequency_hz == 1.5e9
    assert found.uptime_s == 1000.0


def test_a_system_that_does_not_say_what_the_process_takes_is_a_device_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise OSError(5, "Input/output error", "/proc/self/stat")

    monkeypatch.setattr("psutil.Process", broken)
    probe = SystemProbe(tmp_path, ManualClock())
    with pytest.raises(DeviceError, match="does not say what this process takes"):
        probe.read()
    monkeypatch.undo()
    assert probe.read().rss_bytes > 0
