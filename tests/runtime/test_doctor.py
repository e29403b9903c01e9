"""What `tinylcm doctor` finds."""

from __future__ import annotations

from pathlib import Path

from tinylcm.doctor import examine


def test_a_machine_with_everything_has_nothing_to_fix(tmp_path: Path) -> None:
    checks = {check.name: check for check in examine(tmp_path)}
    assert checks["extensions"].state == checks["onnx"].state == checks["python"].state == "ok"
    assert "writable" in checks["data folder"].found


def test_a_clock_that_was_never_set_is_told_with_what_it_costs(tmp_path: Path) -> None:
    for wall_s in (0.0, 5e9):
        clock = next(check for check in examine(tmp_path, wall_s=wall_s) if check.name == "clock")
        assert clock.state == "missing" and "nothing is lost" in clock.found and "timedatectl" in clock.advice


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    assert examine(tmp_path / "deep" / "folder")[-1].state == "ok"
    assert "ok" in {check.state for check in examine(Path("/proc/none"))}
