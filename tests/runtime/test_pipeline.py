"""From samples to predictions: what a user of `Pipeline` sees."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tinylcm
from clocks import ManualClock
from kinds import packaged
from kinds import windowed as of_window
from models import (
    linear_model,
    log_model,
    make_package,
    make_signer,
    manifest_of,
    trust_of,
    unknown_operator_model,
)
from tinylcm import Alarm, ConfigError, DeviceError, InputError, ModelError, Options, Pipeline
from tinylcm.backends.knn import knn_arrays
from tinylcm.drift import Limit, PageHinkley
from tinylcm.manifest import InputSpec, MonitorSpec, WindowSpec
from tinylcm.package import build_package, parse_package


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(linear_model())
    return path


@pytest.fixture
def windowed(tmp_path: Path) -> Path:
    path = tmp_path / "windowed.onnx"
    path.write_bytes(linear_model(2, samples=5))
    return path


def test_infer_takes_a_list_or_an_array_without_the_batch_axis(model: Path) -> None:
    pipeline = Pipeline(model, labels=["a", "b"], monitors=[PageHinkley()])
    from_list = pipeline.infer([0.1, 0.2, 0.3])
    from_array = pipeline.infer(np.array([0.1, 0.2, 0.3]))
    assert from_list.label in ("a", "b")
    assert from_list.scores == from_array.scores
    assert sum(from_list.scores) == pytest.approx(1, abs=1e-6)
    assert from_list.confidence == max(from_list.scores)
    assert from_list.latency_us > 0
    assert from_list.drift == ()
    assert from_list.id != from_array.id


@pytest.mark.parametrize(
    ("window", "problem"),
    [
        ([0.1, 0.2], r"expected shape \[3\], got \[2\]"),
        ([[0.1, 0.2, 0.3]], r"expected shape \[3\], got \[1, 3\]"),
        ([0.1, float("nan"), 0.3], r"value at \[1\] is NaN"),
        ([0.1, float("inf"), 0.3], r"value at \[1\] is NaN, infinite"),
        ([0.1, 1e39, 0.3], "too large for float32"),
        (["a", "b", "c"], "got <U1"),
        (np.zeros(3, dtype=complex), "got complex128"),
        (None, "got object"),
        ([[1], [2, 3]], "expected an array of numbers"),
    ],
)
def test_a_wrong_window_names_the_input_and_what_is_wrong(model: Path, window: object, problem: str) -> None:
    pipeline = Pipeline(model)
    with pytest.raises(InputError, match=problem) as caught:
        pipeline.infer(window)
    assert "'x'" in str(caught.value)
    assert pipeline.infer([1, 2, 3]).label in ("0", "1")  # and the pipeline goes on
    summary = pipeline.take_summary()
    assert summary is not None and summary["errors"] == 1


def test_a_stream_goes_on_after_bad_samples(windowed: Path) -> None:
    rows: list[object] = [[float(index), 1.0] for index in range(20)]
    rows[7] = [float("nan"), 1.0]
    rows[8] = [1.0]
    rows[9] = "noise"
    errors: list[str] = []
    pipeline = Pipeline(windowed, hop=1)
    spans = [
        (prediction.first_sample, prediction.last_sample)
        for prediction in pipeline.stream(rows, on_error=lambda error: errors.append(str(error)))
    ]
    assert [error.split(": ", 1)[0] for error in errors] == [f"input 'x', sample {index}" for index in (7, 8, 9)]
    assert "channel 0 is NaN" in errors[0]
    assert "expected 2 channels, got 1" in errors[1]
    # Windows of 5: three before the gap (0-6), then none until five whole samples have come again (10-19).
    assert len(spans) == 3 + 6
    summary = pipeline.take_summary()
    assert summary is not None and summary["dropped_samples"] == 3


def test_errors_of_a_stream_are_logged_a_few_times_only(windowed: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="tinylcm"):
        assert list(Pipeline(windowed).stream([["x", "y"]] * 100)) == []
    assert len(caplog.records) == 6


def test_rows_blocks_and_any_mix_give_the_same_predictions(windowed: Path) -> None:
    samples = np.random.default_rng(1).standard_normal((200, 2)).astype(np.float32)
    mixed = [samples[:50], *samples[50:60].tolist(), samples[60:61], *(row for row in samples[61:90]), samples[90:]]
    results = [
        [prediction.scores for prediction in Pipeline(windowed, hop=3).stream(source)]
        for source in ([samples], samples, samples.tolist(), [samples.tolist()], mixed)
    ]
    assert len(results[0]) == 1 + 195 // 3
    assert all(result == results[0] for result in results)


def test_a_window_larger_than_the_ring_is_refused(windowed: Path) -> None:
    with pytest.raises(ConfigError, match="window has 5 samples, the ring only 4"):
        Pipeline(windowed, ring_samples=4)
    assert Pipeline(windowed, ring_samples=5).infer(np.zeros((5, 2))).label


def test_labels_must_fit_the_output(model: Path) -> None:
    with pytest.raises(ModelError, match="3 labels for 2 scores of output 'scores'"):
        Pipeline(model, labels=["a", "b", "c"])
    with pytest.raises(ConfigError, match="label occurs twice"):
        Pipeline(model, labels=["a", "a"])


def test_models_that_cannot_run_say_why(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(DeviceError, match=r"reading .*model.onnx"):
        Pipeline(path)
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match="cannot load the model"):
        Pipeline(path)
    path.write_bytes(unknown_operator_model())
    with pytest.raises(ModelError, match="Frobnicate"):
        Pipeline(path)
    path.write_bytes(linear_model()[:-40])
    with pytest.raises(ModelError):
        Pipeline(path)
    with pytest.raises(ConfigError, match="expected a model file"):
        Pipeline(tmp_path / "model.pkl")


def test_scores_that_are_not_finite_are_an_error_and_the_stream_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.onnx"
    path.write_bytes(log_model())
    pipeline = Pipeline(path)
    with pytest.raises(ModelError, match="hold NaN"):
        pipeline.infer([-1.0, 1.0])
    errors: list[Exception] = []
    assert len(list(pipeline.stream([[-1.0, 1.0], [1.0, 2.0]], on_error=errors.append))) == 1
    assert len(errors) == 1 and pipeline.failures == 2
    with pytest.raises(ModelError):
        list(pipeline.stream([[-1.0, 1.0]]))


class Always:
    """A detector that alarms at every value."""

    drift_detected, statistic, threshold, suspect = True, 2.0, 1.0, 0

    def update(self, x: float) -> bool:
        return True


def test_alarms_reach_the_prediction_and_the_sink(model: Path) -> None:
    taken: list[tuple[str, str, dict]] = []

    class Sink:
        def emit(self, stream: str, type: str, payload: dict) -> None:
            taken.append((stream, type, payload))

    prediction = Pipeline(model, monitors=[Always()], sink=Sink()).infer([1, 2, 3])
    assert prediction.drift == (Alarm("confidence", "Always", "confidence", 2.0, 1.0, 0, 0),)
    stream, kind, payload = taken[0]
    assert (stream, kind) == ("events", "alarm")
    assert (payload["monitor"], payload["statistic"], payload["histogram"]) == ("confidence", 2.0, None)


def test_a_sink_that_raises_costs_no_prediction(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def emit(self, stream: str, type: str, payload: object) -> None:
            raise OSError("the bus is gone")

    pipeline = Pipeline(model, sink=Broken(), monitors=[tinylcm.monitors.watch("confidence", Limit(1e-9))])
    found = [pipeline.infer([1.0, 2.0, 3.0]) for _ in range(2)]
    assert len(found[0].drift) == 1 and pipeline.sink_errors == 1 and pipeline.metrics.errors == 0
    assert "the sink failed on an alarm of confidence: the bus is gone" in caplog.text


def test_a_detector_without_update_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match="no detector"):
        Pipeline(model, monitors=[object()])  # type: ignore[list-item]


def test_a_package_brings_its_own_labels_and_keeps_its_manifest() -> None:
    signer = make_signer()
    package = parse_package(make_package(signer=signer), trust_of(signer))
    pipeline = Pipeline(package)
    prediction = pipeline.infer([1, 2, 3])
    assert (prediction.model, prediction.version) == ("gesture", "1.0.0")
    assert prediction.label.startswith("class-")
    with pytest.raises(ConfigError, match="manifest says"):
        Pipeline(package, labels=["a", "b"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"labels": ("a", "b", "c")}, "3 labels for 2 scores"),
        ({"output": "other"}, "no output 'other'"),
        ({"input": InputSpec("y", (1, 3))}, "no input 'y'; it has x"),
        ({"input": InputSpec("x", (1, 4))}, "shape"),
    ],
)
def test_a_package_whose_model_does_not_keep_the_manifest_is_refused(change: dict, problem: str) -> None:
    signer = make_signer()
    data = build_package(replace(manifest_of(), **change), {"model.onnx": linear_model()}, signer)
    with pytest.raises(ModelError, match=problem):
        Pipeline(parse_package(data, trust_of(signer)))


def test_a_swap_under_load_loses_and_mixes_nothing() -> None:
    signer = make_signer()
    packages = [
        parse_package(make_package(version=f"{index}.0", bias=4.0 * index, signer=signer), trust_of(signer))
        for index in (1, 2)
    ]
    expected = {package.manifest.version: Pipeline(package).infer([0.0, 0.0, 0.0]).scores for package in packages}
    pipeline, stop = Pipeline(packages[0]), threading.Event()

    def swap() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            pipeline.swap(packages[turn % 2])

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        predictions = list(pipeline.stream([np.zeros((3000, 3), dtype=np.float32)]))
    finally:
        stop.set()
        thread.join()
    assert len({prediction.id for prediction in predictions}) == 3000
    assert [prediction.last_sample for prediction in predictions] == list(range(3000))
    assert all(prediction.scores == expected[prediction.version] for prediction in predictions)
    assert {prediction.version for prediction in predictions} == set(expected)


def test_a_swap_to_another_window_begins_anew() -> None:
    signer = make_signer()

    def packaged(samples: int, version: str) -> object:
        manifest = replace(
            manifest_of(version=version), input=InputSpec("x", (1, samples, 2)), window=WindowSpec(samples, 1)
        )
        data = build_package(manifest, {"model.onnx": linear_model(2, samples=samples)}, signer)
        return parse_package(data, trust_of(signer))

    pipeline = Pipeline(packaged(3, "1.0"))  # type: ignore[arg-type]
    seen = []
    for prediction in pipeline.stream([0.0, 0.0] for _ in range(12)):
        seen.append(prediction.version)
        if len(seen) == 4:
            pipeline.swap(packaged(5, "2.0"))  # type: ignore[arg-type]
    # 6 samples for four windows of 3; of the other six the first four only fill the new window of 5.
    assert seen == ["1.0"] * 4 + ["2.0"] * 2


def test_a_summary_counts_once_and_keeps_its_interval(model: Path) -> None:
    clock = ManualClock()
    pipeline = Pipeline(model, labels=["a", "b"], clock=clock)
    assert pipeline.take_summary() is None
    for _ in range(3):
        pipeline.infer([1, 2, 3])
    clock.advance(5)
    summary = pipeline.take_summary()
    assert summary is not None
    assert summary["windows"] == 3 and sum(summary["labels"].values()) == 3  # type: ignore[union-attr]
    assert summary["end_ns"] - summary["start_ns"] == 5_000_000_000  # type: ignore[operator]
    assert summary["rss_bytes"] > 1 << 20  # type: ignore[operator]
    assert summary["latency_us"]["count"] == 3  # type: ignore[index, call-overload]
    assert pipeline.take_summary() is None
    assert len(pipeline.metrics.recent()) == 3


def test_a_swap_loses_no_windows_of_the_summaries() -> None:
    signer = make_signer()
    packages = [
        parse_package(make_package(version=f"{index}.0", signer=signer), trust_of(signer)) for index in range(1, 13)
    ]
    pipeline = Pipeline(packages[0])
    pipeline.infer([0.0, 0.0, 0.0])
    pipeline.swap(packages[1])
    pipeline.swap(packages[2])  # the second one has done nothing
    for _ in range(2):
        pipeline.infer([0.0, 0.0, 0.0])
    found = pipeline.take_summaries()
    assert [(summary["version"], summary["windows"]) for summary in found] == [("1.0", 1), ("3.0", 2)]
    assert pipeline.take_summaries() == []
    for package in packages[3:]:
        pipeline.infer([0.0, 0.0, 0.0])
        pipeline.swap(package)
    assert pipeline.take_summary()["version"] == "4.0"  # type: ignore[index]
    assert [summary["version"] for summary in pipeline.take_summaries()] == [f"{n}.0" for n in range(5, 12)]


def test_what_a_stream_still_had_due_at_a_swap_is_summarised_and_numbered_too() -> None:
    signer = make_signer()
    first, second = (
        parse_package(make_package(version=f"{index}.0", signer=signer), trust_of(signer)) for index in (1, 2)
    )
    pipeline = Pipeline(first)
    stream = pipeline.stream([np.zeros((10, 3), np.float32), np.zeros((2, 3), np.float32)])
    found = [next(stream) for _ in range(3)]
    pipeline.swap(second)
    found.append(pipeline.infer([0.0, 0.0, 0.0]))
    found += stream
    assert [prediction.version for prediction in found] == ["1.0"] * 3 + ["2.0"] + ["1.0"] * 7 + ["2.0"] * 2
    assert len({prediction.id for prediction in found}) == 13 == pipeline.predictions
    assert [(one["version"], one["windows"]) for one in pipeline.take_summaries()] == [("1.0", 10), ("2.0", 3)]


def test_many_inferences_do_not_grow_the_heap(model: Path) -> None:
    pipeline, window = Pipeline(model, monitors=[PageHinkley()]), np.ones(3, dtype=np.float32)

    def blocks_after(count: int) -> int:
        for _ in range(count):
            pipeline.infer(window)
        gc.collect()
        return sys.getallocatedblocks()

    blocks_after(2000)
    assert abs(blocks_after(10_000) - blocks_after(1000)) <= 16


def test_a_second_output_is_watched_as_the_embedding() -> None:
    signer = make_signer()
    model = linear_model(embedding=True)
    points = tuple(map(tuple, np.random.default_rng(5).normal(0, 4, (600, 2)).tolist()))
    manifest = replace(
        manifest_of(),
        embedding="z",
        points={"embedding": points},
        monitors=(MonitorSpec("embedding", "embedding", "KNNDistance", {"threshold": 20}),),
    )
    pipeline = Pipeline(parse_package(build_package(manifest, {"model.onnx": model}, signer), trust_of(signer)))
    rng = np.random.default_rng(6)
    assert not any(pipeline.infer(rng.normal(0, 1, 3)).drift for _ in range(200))
    alarms = [alarm for _ in range(50) for alarm in pipeline.infer(rng.normal(30, 1, 3)).drift]
    assert alarms and alarms[0].signal == "embedding" and alarms[0].detector == "KNNDistance"
    missing = build_package(replace(manifest, embedding="nowhere"), {"model.onnx": model}, signer)
    with pytest.raises(ModelError, match="no output 'nowhere'"):
        Pipeline(parse_package(missing, trust_of(signer)))


def test_dropped_samples_and_times_reach_the_monitors() -> None:
    signer = make_signer()
    manifest = replace(
        manifest_of(),
        monitors=(
            MonitorSpec("missing", "missing", "Limit", {"threshold": 0.4, "patience": 2}),
            MonitorSpec("latency", "latency", "Limit", {"threshold": 1e-3}),
        ),
    )
    pipeline = Pipeline(
        parse_package(build_package(manifest, {"model.onnx": linear_model()}, signer), trust_of(signer))
    )
    good, bad = [1.0, 2.0, 3.0], [1.0, math.nan, 3.0]
    alarms = [
        alarm.monitor
        for prediction in pipeline.stream([good] * 5 + [bad, good] * 4, on_error=lambda error: None)
        for alarm in prediction.drift
    ]
    assert alarms == ["latency", "missing"]


# several models, asyncio, budgets -------------------------------------------------------------------------


def test_several_models_read_one_ring_at_their_own_hops() -> None:
    rows = np.random.default_rng(0).standard_normal((200, 2)).astype(np.float32)
    slow, fast = of_window(20, 2, "slow", 10), of_window(4, 2, "fast", 1)
    together = list(tinylcm.stream([rows[:70], *rows[70:].tolist()], [Pipeline(slow), Pipeline(fast)]))
    for package, name in ((slow, "slow"), (fast, "fast")):
        alone = list(Pipeline(package).stream(rows))
        mine = [p for p in together if p.model == name]
        assert [(p.first_sample, p.scores) for p in mine] == [(p.first_sample, p.scores) for p in alone]
    order = [p.last_sample for p in together]
    assert order == sorted(order)


def test_models_that_do_not_take_the_same_samples_cannot_share_a_ring() -> None:
    with pytest.raises(ConfigError, match="do not take the same samples: 2 channels at 0 Hz, and 3"):
        list(tinylcm.stream([[0.0, 0.0]], [Pipeline(of_window(4, 2)), Pipeline(of_window(4, 3))]))
    with pytest.raises(ConfigError, match="at least one model"):
        list(tinylcm.stream([], []))


def test_a_swap_takes_effect_in_a_stream_of_several_models() -> None:
    first, second = Pipeline(of_window(4, 2, "a", 2)), Pipeline(of_window(4, 2, "b", 2))
    seen = []
    for prediction in tinylcm.stream([[0.0, 1.0]] * 20, [first, second]):
        seen.append((prediction.model, prediction.version))
        if len(seen) == 4:
            first.swap(of_window(4, 2, "a", 2, version="2.0"))
    assert ("a", "2.0") in seen and ("b", "2.0") not in seen
    assert len(seen) == 2 * (1 + (20 - 4) // 2)  # the window is the same: nothing begins anew


def test_times_make_the_span_and_missing_samples_are_filled_as_the_manifest_says() -> None:
    package = of_window(4, 1, hop=1, window={"rate_hz": 10, "missing": "interpolate"})
    samples = [tinylcm.Sample(0.1 * i, [float(i)]) for i in range(10) if i not in (5, 6)]
    found = list(Pipeline(package).stream(samples))
    assert len(found) == 7
    assert [p.filled for p in found] == [0, 0, 1, 2, 2, 2, 1]
    assert found[0].start_s == pytest.approx(0.0) and found[0].end_s == pytest.approx(0.3)
    whole = list(Pipeline(package).stream([[float(i)] for i in range(10)]))
    assert [p.scores for p in found] == [pytest.approx(p.scores, abs=1e-6) for p in whole]
    metrics = Pipeline(package)
    assert len(list(metrics.stream(samples))) == 7
    assert metrics.metrics.samples["filled"] == 2 and metrics.metrics.samples["missing"] == 2


def test_asyncio_streams_without_blocking_the_loop() -> None:
    rows = np.random.default_rng(0).standard_normal((60, 2)).astype(np.float32)
    expected = [p.scores for p in Pipeline(of_window(10, 2, hop=5)).stream(rows)]

    async def source() -> AsyncIterator[object]:
        for row in rows[:30].tolist():
            yield row
            await asyncio.sleep(0)
        yield rows[30:]

    async def main() -> tuple[list[tuple[float, ...]], list[tuple[float, ...]], int]:
        ticks = 0

        async def ticking() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(ticking())
        pipeline = Pipeline(of_window(10, 2, hop=5))
        first = [p.scores async for p in pipeline.astream(source())]
        second = [p.scores async for p in pipeline.astream(rows)]
        task.cancel()
        return first, second, ticks

    first, second, ticks = asyncio.run(main())
    assert first == second == expected
    assert ticks > len(expected)


def test_asyncio_hears_of_bad_samples_and_failing_models(tmp_path: Path) -> None:
    path = tmp_path / "log.onnx"
    path.write_bytes(log_model())
    errors: list[Exception] = []

    async def main(strict: bool) -> int:
        pipeline, count = Pipeline(path), 0
        async for _ in pipeline.astream(
            [[1.0, 1.0], ["x", 1.0], [-1.0, 1.0], [2.0, 1.0]], on_error=None if strict else errors.append
        ):
            count += 1
        return count

    assert asyncio.run(main(False)) == 2 and len(errors) == 2
    with pytest.raises(ModelError, match="hold NaN"):
        asyncio.run(main(True))


def test_a_latency_budget_that_is_broken_again_and_again_is_an_alarm() -> None:
    package = of_window(1, 3, budget={"latency_us": 0.001})
    taken: list[tuple[str, str, dict]] = []

    class Sink:
        def emit(self, stream: str, type: str, payload: dict) -> None:
            taken.append((stream, type, payload))

    pipeline = Pipeline(package, sink=Sink(), options=Options(latency_us=1e9))  # the tighter one counts
    alarms = [alarm for _ in range(10) for alarm in pipeline.infer([[1.0, 2.0, 3.0]]).drift]
    assert [(alarm.monitor, alarm.signal, alarm.window) for alarm in alarms] == [("budget", "latency", 2)]
    assert [payload["monitor"] for _, _, payload in taken] == ["budget"]
    assert not any(Pipeline(of_window(1, 3)).infer([[1.0, 2.0, 3.0]]).drift for _ in range(10))


def test_a_memory_budget_is_looked_at_with_every_summary() -> None:
    taken: list[dict] = []

    class Sink:
        def emit(self, stream: str, type: str, payload: dict) -> None:
            taken.append(payload)

    pipeline = Pipeline(of_window(1, 3), sink=Sink(), options=Options(memory_bytes=1 << 20))
    for _ in range(3):
        pipeline.infer([[1.0, 2.0, 3.0]])
        assert pipeline.take_summary() is not None
    assert [(p["monitor"], p["signal"], p["threshold"]) for p in taken] == [("budget", "memory", float(1 << 20))]


def test_decisions_are_of_each_stream_its_own() -> None:
    package = of_window(1, 3, postprocess={"smoothing": 4, "refractory": 2})
    pipeline = Pipeline(package)
    rows = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
    alone = [p.scores for p in Pipeline(package).stream(rows)]
    one, two = pipeline.stream(rows), pipeline.stream(rows[::-1])
    mixed = [(next(one).scores, next(two).scores) for _ in range(12)]
    assert [first for first, _ in mixed] == alone


def test_smoothing_begins_anew_after_a_gap() -> None:
    package = of_window(1, 3, postprocess={"smoothing": 4})
    rows = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    pipeline, fresh = Pipeline(package), Pipeline(package)
    before, after = rows[:3], rows[3:]
    gapped = [p.scores for p in pipeline.stream([before, [math.nan] * 3, after], on_error=lambda error: None)]
    assert gapped[3:] == [p.scores for p in fresh.stream([after])] != [p.scores for p in fresh.stream([rows])][3:]


def test_a_neighbour_distance_is_a_signal() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(0, 1, (100, 4))
    document = {
        "format": "knn",
        "input": {"name": "x", "shape": [1, 4]},
        "monitors": [
            {"name": "far", "signal": "distance", "detector": "PageHinkley", "params": {"threshold": 20.0}},
        ],
    }
    pipeline = Pipeline(packaged(document, {"model.npz": knn_arrays(vectors, np.arange(100) % 2)}))
    assert not any(pipeline.infer(x).drift for x in rng.normal(0, 1, (200, 4)))
    alarms = [alarm for x in rng.normal(4, 1, (30, 4)) for alarm in pipeline.infer(x).drift]
    assert alarms and (alarms[0].monitor, alarms[0].signal) == ("far", "distance")
    with pytest.raises(ModelError, match="no output 'distance'"):
        Pipeline(of_window(1, 3, monitors=document["monitors"]))


class Broken:
    """A detector of an application's own, with a bug."""

    drift_detected, statistic, threshold, suspect = False, 0.0, 1.0, 0

    def update(self, x: float) -> bool:
        raise ZeroDivisionError("own bug")


def test_an_exception_in_an_applications_own_detector_costs_no_prediction(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline(model, monitors=[Broken(), Always()])
    with caplog.at_level(logging.ERROR, logger="tinylcm"):
        alarms = [pipeline.infer([1, 2, 3]).drift for _ in range(20)]
    assert all(len(one) == 1 for one in alarms)
    assert len(caplog.records) == 5 and "own bug" in caplog.text


def test_infer_from_many_threads_loses_and_mixes_nothing(model: Path) -> None:
    pipeline = Pipeline(model)
    inputs = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    expected = [pipeline.infer(x).scores for x in inputs]
    found: list[tuple[int, str, bool]] = []

    def work(index: int) -> None:
        for _ in range(500):
            prediction = pipeline.infer(inputs[index])
            found.append((index, prediction.id, prediction.scores == expected[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({identity for _, identity, _ in found}) == 2000 == pipeline.predictions - 4
    assert all(right for _, _, right in found)
