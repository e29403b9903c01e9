"""The shipped thresholds are what the committed scripts compute from the training recordings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run(activity: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(activity / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


@pytest.mark.long
def test_calibration_gives_what_is_shipped(activity: Path) -> None:
    result = run(activity, "calibrate.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "{'input': 0, 'features': 0, 'prediction': 0" in result.stdout


def test_the_evaluation_finds_no_false_alarm_and_misses_nothing(activity: Path) -> None:
    result = run(activity, "evaluate.py", "--seeds", "3")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 orders of the test recordings" in result.stdout
