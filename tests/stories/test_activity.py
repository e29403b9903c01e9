"""The example's model and monitors on the recordings that they never saw."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fleet import build_activity, make_keys
from tinylcm import Pipeline
from tinylcm.package import Package, load_package
from tinylcm.probe import check_golden


@pytest.fixture(scope="module")
def stream(activity: Path) -> dict[str, Callable]:
    return runpy.run_path(str(activity / "stream.py"))


@pytest.fixture(scope="module")
def package(activity: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("activity")
    return load_package(build_activity(activity, make_keys(folder / "keys"), folder / "activity.tlm"), None)


def test_the_model_is_right_before_the_change_and_errs_after_it(package: Package, stream: dict[str, Callable]) -> None:
    recording = stream["load"]()
    for samples, low, high in (
        (recording.samples, 0.95, 1.0),
        (stream["wear_differently"](recording.samples), 0.3, 0.9),
    ):
        right = []
        for prediction in Pipeline(package).stream([samples]):
            activity = stream["activity_of"](recording, prediction.first_sample, prediction.last_sample)
            if activity is not None:
                right.append(prediction.label == activity)
        assert len(right) == 157
        assert low <= np.mean(right) <= high


@pytest.mark.parametrize("seed", [7, 0, 1, 2])
def test_the_monitors_see_the_change_soon_and_nothing_else(
    package: Package, stream: dict[str, Callable], seed: int
) -> None:
    samples = stream["load"](seed=seed).samples
    control = np.concatenate([samples, samples])
    assert [alarm for prediction in Pipeline(package).stream([control]) for alarm in prediction.drift] == []
    changed = np.concatenate([samples, stream["wear_differently"](samples)])
    alarms = [alarm for prediction in Pipeline(package).stream([changed]) for alarm in prediction.drift]
    assert {"input", "features"} <= {alarm.monitor for alarm in alarms}
    assert all(alarm.window >= 391 for alarm in alarms)
    assert min(alarm.window for alarm in alarms) - 391 < 90


def test_the_package_runs_here_as_it_did_when_it_was_built(package: Package) -> None:
    answer = check_golden(package)
    assert answer["windows"] == 4 and float(answer["error_max"]) <= 1e-5  # type: ignore[arg-type]
    assert package.manifest.input.channels == ("ax", "ay", "az", "gx", "gy", "gz")


def test_the_demo_tells_the_truth_when_a_promise_is_broken(
    activity: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(activity))
    demo = runpy.run_path(str(activity / "demo.py"))
    sys.modules.pop("stream", None)
    report = demo["Report"]()
    report.before.confidence = report.after.confidence = [0.9]
    report.before.latency_us = report.after.latency_us = [50.0]
    report.before.pure = report.before.right = 10
    events = [{"monitor": "input"}, {"monitor": "features"}]
    report.first_alarms = {"input (BinnedKS on az)": 36, "features (Mahalanobis on mean ay)": 63}

    def verdict(control: int = 0, shown: list | None = None) -> int:
        return demo["tell"](report, control, events if shown is None else shown, "page", None, keep=False, seconds=1.0)

    assert verdict() == 0
    assert "alarm 36 windows" in capsys.readouterr().out
    assert verdict(control=1) == 1
    assert verdict(shown=[]) == 1
    report.false_alarms = 1
    assert verdict() == 1
    report.false_alarms, report.before.right = 0, 5
    assert verdict() == 1
    report.before.right, report.first_alarms = 10, {}
    assert verdict() == 1
    assert "FAILED" in capsys.readouterr().out
