"""Monitors as a manifest declares them, and as Python joins them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from models import manifest_of
from tinylcm.drift import CategoricalPSI, PageHinkley
from tinylcm.errors import ConfigError, ModelError
from tinylcm.monitors import MonitorSet, build_monitors, watch
from tinylcm.package import FeatureReference, InputSpec, Manifest, MonitorSpec, WindowSpec, parse_manifest

RNG = np.random.default_rng(8)
REFERENCE = {
    "input": tuple(
        FeatureReference(name, 0.0, 1.0, (-5.0, -0.67, 0.0, 0.67, 5.0), (25.0, 25.0, 25.0, 25.0)) for name in "xy"
    ),
    "features": tuple(
        FeatureReference(name, mean, 0.3, (-5.0, 0.0, 1.0, 5.0), (1.0, 1.0, 1.0))
        for name, mean in (("mean x", 0.0), ("mean y", 0.0), ("std x", 0.95), ("std y", 0.95))
    ),
    "prediction": (FeatureReference("prediction", 0.5, 0.5, (0.0, 1.0, 2.0), (50.0, 50.0)),),
}


def manifest(*monitors: MonitorSpec, hop: int = 5) -> Manifest:
    return replace(
        manifest_of(),
        input=InputSpec("x", (1, 10, 2), channels=("x", "y")),
        window=WindowSpec(10, hop),
        monitors=monitors,
        reference=REFERENCE,
    )


def alarms_of(declared: Manifest, samples: np.ndarray, labels: np.ndarray | None = None) -> list:
    monitors = MonitorSet(declared, build_monitors(declared))
    found = []
    for index, end in enumerate(range(10, len(samples) + 1, declared.window.hop)):
        window = np.ascontiguousarray(samples[end - 10 : end], dtype=np.float32)
        label = 0 if labels is None else int(labels[index])
        found += monitors.update(window, label, 0.9)
    return found


def test_the_input_monitor_names_the_channel_that_moved_and_shows_it() -> None:
    samples = RNG.standard_normal((2000, 2))
    samples[1000:, 1] += 2
    declared = manifest(MonitorSpec("input", "input", "BinnedKS", {"threshold": 0.4, "window": 100}))
    alarms = alarms_of(declared, samples)
    assert [(alarm.monitor, alarm.signal, alarm.detector) for alarm in alarms] == [("input", "y", "BinnedKS")]
    alarm = alarms[0]
    assert 199 <= alarm.window <= 218  # windows of 10 by 5: the change is at window 199
    assert alarm.window - 20 < alarm.suspect <= alarm.window
    assert alarm.statistic > alarm.threshold == 0.4
    assert alarm.histogram is not None
    assert len(alarm.histogram.edges) == 5 and sum(alarm.histogram.current) == 100
    assert alarm.histogram.current[3] > alarm.histogram.current[0]


def test_the_feature_monitor_sees_scatter_as_well_as_level() -> None:
    samples = RNG.standard_normal((2000, 2))
    samples[1000:, 0] *= 3
    declared = manifest(MonitorSpec("features", "features", "Mahalanobis", {"threshold": 3, "window": 20}))
    alarms = alarms_of(declared, samples)
    assert [alarm.signal for alarm in alarms] == ["std x"]
    assert alarms[0].histogram is not None and sum(alarms[0].histogram.current) == 20


def test_the_prediction_monitor_sees_another_mix() -> None:
    labels = np.concatenate([np.arange(200) % 2, np.zeros(200)])
    spec = MonitorSpec("prediction", "prediction", "PSI", {"threshold": 0.5, "window": 50})
    alarms = alarms_of(manifest(spec), np.zeros((5 * 400 + 5, 2)), labels)
    assert len(alarms) == 1 and 200 < alarms[0].window < 250
    assert alarms[0].histogram is not None and alarms[0].histogram.labels == ("class-0", "class-1")


@pytest.mark.parametrize("detector", ["PageHinkley", "ADWIN"])
def test_confidence_monitors_are_quiet_on_a_constant(detector: str) -> None:
    assert alarms_of(manifest(MonitorSpec("confidence", "confidence", detector)), np.zeros((500, 2))) == []


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (MonitorSpec("a", "input", "ADWIN"), "not known"),
        (MonitorSpec("a", "moon", "PSI"), "not known"),
        (MonitorSpec("a", "input", "BinnedKS"), "needs threshold"),
        (MonitorSpec("a", "input", "BinnedKS", {"threshold": 0.4, "windw": 3}), "no parameter 'windw'"),
        (MonitorSpec("a", "input", "BinnedKS", {"threshold": 1.4}), "0 < threshold < 1"),
        (MonitorSpec("a", "confidence", "ADWIN", {"delta": 2}), "0 < delta < 1"),
    ],
)
def test_a_manifest_with_a_wrong_monitor_is_refused(spec: MonitorSpec, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        build_monitors(manifest(spec))


def test_a_monitor_without_its_reference_is_refused() -> None:
    declared = replace(manifest(MonitorSpec("i", "input", "BinnedKS", {"threshold": 0.4})), reference={})
    with pytest.raises(ModelError, match="reference statistics of 0 input signals, expected 2"):
        build_monitors(declared)
    twice = manifest(MonitorSpec("c", "confidence", "ADWIN"), MonitorSpec("c", "confidence", "ADWIN"))
    with pytest.raises(ModelError, match="two monitors of one name"):
        build_monitors(twice)


def test_declared_monitors_survive_the_manifest() -> None:
    spec = MonitorSpec("input", "input", "BinnedKS", {"threshold": 0.4, "window": 100.0})
    declared = replace(manifest(spec), correlation={"features": ((1.0, 0.0), (0.0, 1.0))})
    again = parse_manifest(declared.to_json())
    assert again.monitors == (spec,)
    assert again.reference == REFERENCE
    assert again.correlation == declared.correlation


def test_watch_joins_what_fits() -> None:
    assert watch("confidence", PageHinkley(), "mine").name == "mine"
    assert watch("prediction", CategoricalPSI([1, 1])).signal == "prediction"
    with pytest.raises(ConfigError, match="watches the confidence"):
        watch("input", PageHinkley())
    with pytest.raises(ConfigError, match="not known"):
        watch("weather", PageHinkley())
