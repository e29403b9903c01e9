"""What the runtime adds to the backend's own call, hot and at 100 Hz, on the same path and in the same run.

The bare side is the least that anyone has to write: copy the window into the bound input, run, copy the scores out; and
beside it the backend's call alone. Sides take turns in short rounds, so that a slow moment of the machine hits all.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from tinylcm import Pipeline
from tinylcm.drift import ADWIN, CUSUM, EWMAChart, PageHinkley
from tinylcm.keys import init_keys
from tinylcm.monitors import Monitor, watch
from tinylcm.package import parse_package
from tinylcm.publish import build

ROOT = Path(__file__).parent.parent
ACTIVITY = ROOT / "examples" / "activity"
ROUNDS, CALLS = 40, 250
PACED_HZ, PACED_CALLS, PACED_ROUNDS = 100.0, 25, 12
sys.path.insert(0, str(ROOT / "tests" / "support"))

from models import linear_model  # noqa: E402


def four_monitors() -> list[Monitor]:
    """The named set: Page-Hinkley and ADWIN on the confidence, EWMA chart on the entropy, CUSUM on the margin."""
    return [
        watch("confidence", PageHinkley(), "page-hinkley"),
        watch("confidence", ADWIN(), "adwin"),
        watch("entropy", EWMAChart(), "entropy"),
        watch("margin", CUSUM(), "margin"),
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    path.write_bytes(linear_model(1, samples=512))
    return path


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    keys = tmp_path_factory.mktemp("keys")
    init_keys(keys)
    data = build(ACTIVITY / "model.onnx", ACTIVITY / "model.toml", keys / "release.key")
    return Pipeline(parse_package(data, None))


def activity_window() -> np.ndarray:
    series = np.load(ACTIVITY / "data" / "basic_motions.npz")["x_test"]
    return np.ascontiguousarray(series[0].T, dtype=np.float32)


def bare_of(pipeline: Pipeline, window: np.ndarray) -> Callable[[], object]:
    """The plain calls on a backend of its own."""
    backend = pipeline.backend
    tensor, scores, run = backend.inputs[0].array[0], backend.outputs[0].array, backend.run

    def bare() -> object:
        tensor[...] = window
        run()
        return scores.tolist()

    return bare


def hot(sides: dict[str, Callable[[], object]]) -> dict[str, np.ndarray]:
    """Microseconds of single calls, back to back."""
    times: dict[str, list[int]] = {name: [] for name in sides}
    clock = time.perf_counter_ns
    for call in sides.values():
        for _ in range(CALLS):
            call()
    for _ in range(ROUNDS):
        for name, call in sides.items():
            kept = times[name]
            for _ in range(CALLS):
                start = clock()
                call()
                kept.append(clock() - start)
    return {name: np.array(kept) / 1000 for name, kept in times.items()}


def paced(sides: dict[str, Callable[[], object]]) -> dict[str, np.ndarray]:
    """Microseconds of single calls at 100 Hz: the machine has slept between them."""
    times: dict[str, list[int]] = {name: [] for name in sides}
    for _ in range(PACED_ROUNDS):
        for name, call in sides.items():
            due = time.monotonic()
            for _ in range(PACED_CALLS):
                due += 1 / PACED_HZ
                time.sleep(max(0.0, due - time.monotonic()))
                start = time.perf_counter_ns()
                call()
                times[name].append(time.perf_counter_ns() - start)
    return {name: np.array(kept) / 1000 for name, kept in times.items()}


def record(benchmark: BenchmarkFixture, taken: dict[str, np.ndarray], peer: str, table: str) -> None:
    """The figures of one row."""
    ours, bare, alone = taken["ours"], taken["bare"], taken["alone"]
    p50, base = np.median(ours), np.median(bare)
    benchmark.extra_info.update(
        table=table,
        peer=peer,
        infer_us=round(float(p50), 1),
        infer_p99_us=round(float(np.percentile(ours, 99)), 1),
        bare_us=round(float(base), 1),
        bare_p99_us=round(float(np.percentile(bare, 99)), 1),
        added_us=round(float(p50 - base), 1),
        added_percent=round(float(100 * (p50 / base - 1)), 1),
        run_alone_us=round(float(np.median(alone)), 1),
        over_run_us=round(float(p50 - np.median(alone)), 1),
        ratio=round(float(p50 / base), 3),
    )


@pytest.mark.parametrize("mode", ["hot", "paced"])
@pytest.mark.parametrize("set_", ["no monitors", "four monitors"])
def test_infer_of_a_tiny_model(benchmark: BenchmarkFixture, tiny: Path, set_: str, mode: str) -> None:
    """512 samples, one channel, a model of a few microseconds: what is added shows most."""
    window = np.random.default_rng(0).standard_normal((512, 1)).astype(np.float32)
    pipeline = Pipeline(tiny, monitors=four_monitors() if set_ == "four monitors" else [])
    peer = Pipeline(tiny)
    sides = {
        "ours": lambda: pipeline.infer(window),
        "bare": bare_of(peer, window),
        "alone": peer.backend.run,
    }
    record(benchmark, (hot if mode == "hot" else paced)(sides), f"{set_}, {mode}", "inference")
    benchmark.pedantic(sides["ours"], rounds=5, iterations=50)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("mode", ["hot", "paced"])
def test_infer_of_the_activity_model_with_its_five_monitors(
    benchmark: BenchmarkFixture, monitored: Pipeline, mode: str
) -> None:
    """BinnedKS on 600 raw values, Mahalanobis on 12 features, PSI of the mix, Page-Hinkley and ADWIN."""
    window, peer = activity_window(), Pipeline(ACTIVITY / "model.onnx")
    sides = {
        "ours": lambda: monitored.infer(window),
        "bare": bare_of(peer, window),
        "alone": peer.backend.run,
    }
    record(benchmark, (hot if mode == "hot" else paced)(sides), f"five monitors, {mode}", "inference")
    benchmark.pedantic(sides["ours"], rounds=5, iterations=50)  # type: ignore[no-untyped-call]


def test_stream_a_window_with_five_monitors(benchmark: BenchmarkFixture, monitored: Pipeline) -> None:
    """Ten new samples and a prediction, against cutting the window out of an array by hand."""
    rows = np.tile(activity_window(), (2, 1))
    stream = monitored.stream(itertools.repeat(rows[:10]))
    next(stream)
    peer = Pipeline(ACTIVITY / "model.onnx")
    tensor, scores, run = peer.backend.inputs[0].array[0], peer.backend.outputs[0].array, peer.backend.run

    def bare() -> object:
        tensor[...] = rows[10:110]
        run()
        return scores.tolist()

    sides = {"ours": lambda: next(stream), "bare": bare, "alone": run}
    record(benchmark, hot(sides), "a streamed window, hot", "inference")
    benchmark.pedantic(sides["ours"], rounds=5, iterations=50)  # type: ignore[no-untyped-call]


def test_blocks_do_not_grow(benchmark: BenchmarkFixture, tiny: Path) -> None:
    """Python's memory blocks between 1,000 and 10,000 inferences, with monitors and metrics on."""
    window = np.ones((512, 1), dtype=np.float32)
    pipeline = Pipeline(tiny, monitors=four_monitors())

    def blocks_after(count: int) -> int:
        for _ in range(count):
            pipeline.infer(window)
        gc.collect()
        return sys.getallocatedblocks()

    blocks_after(2000)
    first = blocks_after(1000)
    growth = blocks_after(10_000) - first
    benchmark.extra_info.update(table="growth", peer="1k to 10k inferences", blocks=growth, wanted=8)
    benchmark.pedantic(lambda: pipeline.infer(window), rounds=5, iterations=50)  # type: ignore[no-untyped-call]
