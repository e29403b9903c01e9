"""Monitors as a manifest declares them, and as Python joins them."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from models import manifest_of
from scipy.stats import chi2
from tinylcm.drift import (
    CUSUM,
    CategoricalPSI,
    ChiSquare,
    FeatureDrift,
    HotellingT2,
    KNNDistance,
    Limit,
    Mahalanobis,
    PageHinkley,
)
from tinylcm.errors import ConfigError, InputError, ModelError
from tinylcm.manifest import FeatureReference, InputSpec, Manifest, MonitorSpec, WindowSpec, parse_manifest
from tinylcm.monitors import Monitor, MonitorSet, PValueMonitor, build_monitors, watch

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
        found += monitors.update(window, label, (0.9, 0.9))
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
        (MonitorSpec("a", "prediction", "ADWIN"), "is a category"),
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
    with pytest.raises(ConfigError, match="is rows"):
        watch("input", PageHinkley())
    with pytest.raises(ConfigError, match="not known"):
        watch("weather", PageHinkley())


# every signal ---------------------------------------------------------------------------------------------


def run(monitors: MonitorSet, windows: list[dict[str, Any]]) -> list[Any]:
    found = []
    for window in windows:
        values = {"window": np.zeros((10, 2), np.float32), "label": 0, "scores": (0.9, 0.1), **window}
        found += monitors.update(**values)
    return found


def joined(*monitors: Monitor) -> MonitorSet:
    return MonitorSet(manifest(), monitors)


@pytest.mark.parametrize(
    ("signal", "detector", "calm", "off"),
    [
        ("confidence", CUSUM(0.9, 0.05), {"scores": (0.9, 0.1)}, {"scores": (0.6, 0.4)}),
        ("entropy", Limit(0.8, 5), {"scores": (0.9, 0.1)}, {"scores": (0.5, 0.5)}),
        ("margin", CUSUM(0.8, 0.05), {"scores": (0.9, 0.1)}, {"scores": (0.55, 0.45)}),
        ("latency", CUSUM(200.0, 20.0), {"latency_us": 205.0}, {"latency_us": 900.0}),
        ("missing", Limit(0.2, 3), {"missing": 0}, {"missing": 5}),
        ("stuck", Limit(0.9, 3), {"window": RNG.normal(0, 1, (10, 2)).astype(np.float32)}, {}),
        ("prediction", ChiSquare([90, 10], 20, window=20), {"label": 0}, {"label": 1}),
    ],
)
def test_every_number_of_a_window_can_be_watched(
    signal: str, detector: Any, calm: dict[str, Any], off: dict[str, Any]
) -> None:
    monitors = joined(watch(signal, detector))
    assert run(monitors, [calm] * 100) == []
    alarms = run(monitors, [off] * 50)
    assert alarms and alarms[0].signal == signal and alarms[0].window >= 100
    # The detectors' windows reach back by themselves.
    assert alarms[0].window - 20 <= alarms[0].suspect <= alarms[0].window


def test_the_sampling_rate_is_watched_by_the_clock() -> None:
    monitors = joined(watch("rate", CUSUM(0.01, 0.001)))  # 100 Hz
    times = np.concatenate([np.arange(1, 101) * 50_000_000, 5_000_000_000 + np.arange(1, 60) * 60_000_000])
    alarms = run(monitors, [{"at_ns": int(at)} for at in times])
    assert alarms and 100 <= alarms[0].window < 110


def test_a_saturated_channel_is_seen_by_the_references_range_or_a_given_one() -> None:
    for params in ({"threshold": 0.5, "patience": 3}, {"threshold": 0.5, "patience": 3, "low": -5, "high": 5}):
        declared = manifest(MonitorSpec("saturated", "saturated", "Limit", params))
        monitors = MonitorSet(declared, build_monitors(declared))
        calm = RNG.normal(0, 1, (10, 2)).astype(np.float32)
        clipped = calm.copy()
        clipped[:7, 1] = 5.0
        assert run(monitors, [{"window": calm}] * 20) == []
        assert [alarm.window for alarm in run(monitors, [{"window": clipped}] * 5)] == [22]


def test_rows_take_a_detector_of_rows_or_one_a_channel() -> None:
    rows = RNG.normal(0, 1, (500, 2))
    changed = RNG.normal(0, 1, (200, 2)) + np.array([0, 3])
    sets = [
        joined(watch("input", FeatureDrift.from_reference(rows, window=50, level=25, spread=99, joint=99, shape=0.9))),
        joined(watch("input", [CUSUM(0.0, 1.0, threshold=15), CUSUM(0.0, 1.0, threshold=15)])),
        joined(watch("embedding", KNNDistance(rows))),
        joined(watch("embedding", Mahalanobis([0, 0], [1, 1], None, 2.0, window=10))),
    ]
    for monitors, signal in zip(sets, ["input[1]", "input[1]", "embedding", "embedding[1]"], strict=True):
        calm = [block.astype(np.float32) for block in np.split(rows, 50)]
        off = [block.astype(np.float32) for block in np.split(changed, 20)]
        assert run(monitors, [{"window": x, "embedding": x[0]} for x in calm]) == []
        alarms = run(monitors, [{"window": x, "embedding": x[0]} for x in off])
        assert alarms and alarms[0].signal.startswith(signal)


def test_an_embedding_that_the_model_does_not_give_is_an_error() -> None:
    with pytest.raises(ModelError, match="names no `embedding`"):
        run(joined(watch("embedding", KNNDistance(RNG.normal(0, 1, (50, 2))))), [{}])


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        (MonitorSpec("m", "confidence", "CUSUM", {"threshold": 12, "warm_up": 50}), {}),
        (MonitorSpec("m", "entropy", "EWMAChart", {"policy": "rebase"}), {}),
        (MonitorSpec("m", "input", "CUSUM", {"threshold": 30, "arl0": 5000}), {}),
        (MonitorSpec("m", "input", "FeatureDrift", {"level": 20, "window": 100}), {}),
        (MonitorSpec("m", "input", "IncrementalKS", {"threshold": 0.5, "window": 50}), {}),
        (MonitorSpec("m", "features", "PSI", {"threshold": 3, "window": 30}), {}),
        (MonitorSpec("m", "features", "HotellingT2", {"alpha": 1e-9, "window": 30}), {}),
        (MonitorSpec("m", "features", "KNNDistance", {"k": 3}), {"points": {"features": RNG.normal(0, 1, (40, 4))}}),
        (MonitorSpec("m", "prediction", "ChiSquare", {"alpha": 1e-6, "window": 50}), {}),
        (MonitorSpec("m", "prediction", "PSI", {"threshold": 3, "warm_up": 100}), {}),
        (MonitorSpec("m", "latency", "PSI", {"threshold": 3, "warm_up": 100, "bins": 8}), {}),
        (MonitorSpec("m", "confidence", "PageHinkley", {"mode": "down"}), {}),
    ],
    ids=lambda value: f"{value.signal} {value.detector}" if isinstance(value, MonitorSpec) else "",
)
def test_any_detector_that_fits_can_be_declared(spec: MonitorSpec, values: dict[str, Any]) -> None:
    tables = {
        key: {signal: tuple(map(tuple, rows.tolist())) for signal, rows in table.items()}
        for key, table in values.items()
    }
    declared = replace(manifest(spec), **tables)
    again = parse_manifest(declared.to_json())
    assert again == replace(declared, monitors=again.monitors)
    monitors = MonitorSet(again, build_monitors(again))
    for index in range(400):
        window = RNG.normal(0, 1, (10, 2)).astype(np.float32)
        p = float(RNG.uniform(0.6, 0.9))
        monitors.update(window, index % 2, (p, p), 200 + p, 0, index)
    assert monitors.arl0 == (5000 if "arl0" in spec.params else None)
    assert all(isinstance(state, bytes) for monitor in monitors.monitors for state in monitor.states())


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (MonitorSpec("a", "confidence", "Mahalanobis", {"threshold": 1}), "takes rows"),
        (MonitorSpec("a", "input", "Mahalanobis", {}), "needs threshold"),
        (MonitorSpec("a", "confidence", "ChiSquare", {"threshold": 1}), "watches the prediction"),
        (MonitorSpec("a", "features", "KNNDistance"), "needs (the )?reference rows"),
        (MonitorSpec("a", "embedding", "CUSUM"), "needs reference statistics"),
        (MonitorSpec("a", "confidence", "PageHinkley", {"mode": 3}), "expected a text"),
        (MonitorSpec("a", "confidence", "PageHinkley", {"delta": "x"}), "expected a number"),
        (MonitorSpec("a", "confidence", "CUSUM", {"alpha": 0.1}), "no parameter 'alpha'"),
        (MonitorSpec("a", "prediction", "ChiSquare", {"alpha": 0.1, "threshold": 3}), "not both"),
        (MonitorSpec("a", "prediction", "ChiSquare", {"alpha": 2}), "0 < alpha < 1"),
        (MonitorSpec("a", "confidence", "CUSUM", {"arl0": -1}), "more than 0"),
        (MonitorSpec("a", "confidence", "CUSUM", {"warm_up": 1.5}), "warm_up|integer"),
        (MonitorSpec("a", "confidence", "CUSUM", {"policy": "never"}), "policy"),
    ],
)
def test_a_monitor_that_does_not_fit_is_refused(spec: MonitorSpec, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        build_monitors(manifest(spec))


def test_watch_refuses_what_does_not_fit() -> None:
    for signal, detector, problem in [
        ("confidence", [CUSUM()], "list of detectors"),
        ("input", [], "list of detectors"),
        ("confidence", Mahalanobis([0], [1], None, 1.0), "takes rows"),
        ("confidence", object(), "no detector"),
        ("prediction", CUSUM(), "does not fit"),
        ("saturated", Limit(0.5), "declare it in a manifest"),
    ]:
        with pytest.raises(ConfigError, match=problem):
            watch(signal, detector)
    with pytest.raises(ConfigError, match="no p-value"):
        watch("confidence", CUSUM(), alpha=0.1)


# the set --------------------------------------------------------------------------------------------------


def test_the_set_states_what_it_promises() -> None:
    monitors = joined(watch("confidence", Limit(0.5), arl0=20_000), watch("margin", Limit(0.95), arl0=20_000))
    (alarm,) = run(monitors, [{"scores": (0.9, 0.1)}])
    assert (alarm.arl0, alarm.monitors, alarm.p_value) == (10_000, 2, None)
    silent = joined(watch("confidence", Limit(0.5), arl0=20_000), watch("margin", Limit(0.95)))
    assert run(silent, [{"scores": (0.9, 0.1)}])[0].arl0 is None


def test_monitors_of_p_values_share_one_level_by_holm() -> None:
    rng = np.random.default_rng(31)
    level = 0.05

    def false_alarms(shared: bool) -> int:
        count = 0
        for _ in range(200):
            monitors = joined(
                *[
                    watch(
                        "embedding",
                        HotellingT2([0.0], [1.0], None, threshold=chi2.isf(level, 1), window=20)
                        if not shared
                        else HotellingT2([0.0], [1.0], None, threshold=1e300, window=20),
                        name=f"m{i}",
                        alpha=level if shared else None,
                    )
                    for i in range(10)
                ]
            )
            # Ten looks at ten independent streams: each monitor gets rows of its own.
            for monitor in monitors.monitors:
                inner = monitor.inner if isinstance(monitor, PValueMonitor) else monitor
                inner.detector.update_many(rng.normal(0, 1, (19, 1)))  # type: ignore[attr-defined]
            alarms = monitors.update(np.zeros((10, 2), np.float32), 0, (1.0, 0.0), embedding=np.zeros(1, np.float32))
            count += bool(alarms)
        return count

    shared, alone = false_alarms(True), false_alarms(False)
    assert alone > 50  # 1 - 0.95**10 = 40 % of 200
    assert shared < 24  # 5 % of 200, and three deviations


def test_a_monitor_of_p_values_alarms_once_with_its_p_value() -> None:
    monitors = joined(watch("prediction", ChiSquare([50, 50], 1e300, window=20), alpha=0.01))
    calm, off = [{"label": i % 2} for i in range(60)], [{"label": 1}] * 60
    alarms = run(monitors, calm + off + calm + off)
    assert len(alarms) == 2
    assert alarms[0].p_value is not None and alarms[0].p_value < 0.01
    assert alarms[0].histogram is not None


# a restart ------------------------------------------------------------------------------------------------

EVERY_KIND = (
    MonitorSpec("confidence", "confidence", "ADWIN", {"clock": 1}),
    MonitorSpec("input", "input", "BinnedKS", {"threshold": 0.4, "window": 50}),
    MonitorSpec("each", "input", "CUSUM", {"threshold": 8}),
    MonitorSpec("features", "features", "Mahalanobis", {"threshold": 1.2, "window": 10}),
    MonitorSpec("set", "features", "FeatureDrift", {"level": 5, "window": 30}),
    MonitorSpec("p", "prediction", "ChiSquare", {"alpha": 0.01, "window": 20}),
)


def windows_of(seed: int, count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "window": rng.normal(0.3 * (index > 60), 1, (10, 2)).astype(np.float32),
            "label": int(rng.random() < (0.5 if index < 60 else 0.9)),
            "scores": (float(rng.uniform(0.5, 1)),) * 2,
        }
        for index in range(count)
    ]


def test_a_restart_of_all_monitors_changes_nothing_bit_for_bit() -> None:
    declared = manifest(*EVERY_KIND)
    windows = windows_of(60, 160)
    whole = MonitorSet(declared, build_monitors(declared))
    expected = [run(whole, [window]) for window in windows]
    assert sum(map(len, expected)) > 3
    for cut in (0, 1, 70, 110):
        first = MonitorSet(declared, build_monitors(declared))
        run(first, windows[:cut])
        second = MonitorSet(declared, build_monitors(declared))
        assert second.restore(first.to_state()) == []
        assert [run(second, [window]) for window in windows[cut:]] == expected[cut:]


def test_monitors_whose_parameters_changed_begin_anew_and_others_go_on() -> None:
    before = manifest(*EVERY_KIND)
    first = MonitorSet(before, build_monitors(before))
    run(first, windows_of(61, 30))
    changed = replace(before, monitors=(*EVERY_KIND[:2], replace(EVERY_KIND[2], params={"threshold": 9})))
    second = MonitorSet(changed, build_monitors(changed))
    assert second.restore(first.to_state()) == ["each"]
    newer = replace(before, version="9.9")
    assert len(MonitorSet(newer, build_monitors(newer)).restore(first.to_state())) == len(EVERY_KIND)
    state = bytearray(first.to_state())
    rng = np.random.default_rng(62)
    for _ in range(200):
        torn = bytearray(state)
        torn[rng.integers(len(torn))] ^= 0xFF
        third = MonitorSet(before, build_monitors(before))
        with contextlib.suppress(InputError):
            third.restore(bytes(torn))
        run(third, windows_of(63, 3))
    for wrong in (b"", b"x", state[:50]):
        with pytest.raises(InputError):
            second.restore(bytes(wrong))


def test_an_alarm_of_a_detector_without_histograms_has_them_too() -> None:
    rng = np.random.default_rng(64)
    monitors = joined(
        watch("confidence", CUSUM(warm_up=300)), watch("embedding", [CUSUM(warm_up=300), CUSUM(warm_up=300)])
    )

    def windows(mean: float, count: int) -> list[dict[str, Any]]:
        return [
            {"scores": (mean + 0.02 * rng.normal(), 0.1), "embedding": rng.normal(10 * mean, 1, 2).astype(np.float32)}
            for _ in range(count)
        ]

    assert run(monitors, windows(0.9, 600)) == []
    alarms = run(monitors, windows(0.6, 100))
    assert {alarm.signal for alarm in alarms} >= {"confidence"} and len({alarm.monitor for alarm in alarms}) == 2
    for alarm in alarms:
        assert alarm.histogram is not None
        assert sum(alarm.histogram.reference) == 200 and sum(alarm.histogram.current) == 200
