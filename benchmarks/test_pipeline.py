"""What the runtime adds to the backend's own call, hot and at 100 Hz, on the same path and in the same run.

The bare side is the least that anyone has to write: copy the window into the bound input, run it as ONNX Runtime's
documentation says, copy the scores out; and beside it that run alone. Sides take turns in short rounds, so that a slow
moment of the machine hits all, and calls in which the scheduler gave the processor to another process are left out of
both.
"""

from __future__ import annotations

import gc
import itertools
import resource
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from tinylcm import Pipeline, Prediction
from tinylcm.backends.onnx import OnnxBackend
from tinylcm.drift import ADWIN, CUSUM, EWMAChart, PageHinkley
from tinylcm.keys import init_keys
from tinylcm.monitors import Monitor, watch
from tinylcm.package import parse_package
from tinylcm.publish import build

ROOT = Path(__file__).parent.parent
ACTIVITY = ROOT / "examples" / "activity"
ROUNDS, CALLS, WARM = 40, 250, 10
PACED_HZ, PACED_CALLS, PACED_ROUNDS = 100.0, 25, 48
sys.path.insert(0, str(ROOT / "tests" / "support"))

from models import layers_model, linear_model  # noqa: E402


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
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "network.onnx"
    path.write_bytes(layers_model(512, 1024, 1024, 4))
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


def plain_run(pipeline: Pipeline) -> Callable[[], None]:
    """The engine's call as its documentation has it, on a backend of its own."""
    backend = pipeline.backend
    assert isinstance(backend, OnnxBackend)
    return partial(backend._session.run_with_iobinding, backend._binding)


def bare_of(pipeline: Pipeline, window: np.ndarray, run: Callable[[], None] | None = None) -> Callable[[], object]:
    """The plain calls on a backend of its own, by its documented run or another one."""
    tensor, scores = pipeline.backend.inputs[0].array[0], pipeline.backend.outputs[0].array
    run = plain_run(pipeline) if run is None else run

    def bare() -> object:
        tensor[...] = window
        run()
        return scores.tolist()

    return bare


class Taken:
    """Microseconds of each side's calls, round by round, and what of ours was not the backend's run."""

    def __init__(self, sides: Iterable[str]) -> None:
        self.rounds: dict[str, list[NDArray[np.float64]]] = {name: [] for name in sides}
        self.own: list[float] = []

    def add(self, name: str, times_ns: list[int], results: list[object]) -> None:
        """One round of one side."""
        if not times_ns:
            return
        times = np.array(times_ns) / 1000
        self.rounds[name].append(times)
        self.own += [
            us - result.run_us for us, result in zip(times, results, strict=True) if isinstance(result, Prediction)
        ]

    def of(self, name: str) -> NDArray[np.float64]:
        """All calls of a side."""
        return np.concatenate(self.rounds[name])

    def difference(self, name: str, other: str) -> float:
        """Median over the rounds of the difference of the rounds' medians."""
        pairs = zip(self.rounds[name], self.rounds[other], strict=False)
        return float(np.median([np.median(a) - np.median(b) for a, b in pairs]))


def preemptions() -> int:
    """How often the scheduler has taken the processor from this thread."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def hot(sides: dict[str, Callable[[], object]]) -> Taken:
    """Calls back to back; the sides take turns in short rounds, whose first calls find the caches of another side."""
    taken, clock = Taken(sides), time.perf_counter_ns
    for call in sides.values():
        for _ in range(CALLS):
            call()
    for _ in range(ROUNDS):
        for name, call in sides.items():
            times, results, before = [], [], preemptions()
            for number in range(WARM + CALLS):
                start = clock()
                result = call()
                took = clock() - start
                now = preemptions()
                if now == before and number >= WARM:
                    times.append(took)
                    results.append(result)
                before = now
            taken.add(name, times, results)
    return taken


def paced(sides: dict[str, Callable[[], object]]) -> Taken:
    """Single calls at 100 Hz, in rounds as short as a quarter of a second: the machine has slept before each."""
    taken = Taken(sides)
    for _ in range(PACED_ROUNDS):
        for name, call in sides.items():
            times, results, due = [], [], time.monotonic()
            for _ in range(PACED_CALLS):
                due += 1 / PACED_HZ
                time.sleep(max(0.0, due - time.monotonic()))
                before = preemptions()
                start = time.perf_counter_ns()
                result = call()
                took = time.perf_counter_ns() - start
                if preemptions() == before:
                    times.append(took)
                    results.append(result)
            taken.add(name, times, results)
    return taken


def record(benchmark: BenchmarkFixture, taken: Taken, peer: str, table: str) -> None:
    """The figures of one row."""
    ours, bare, alone = taken.of("ours"), taken.of("bare"), taken.of("alone")
    added, base, own = taken.difference("ours", "bare"), float(np.median(bare)), np.array(taken.own)
    p99, bare_p99 = np.percentile(ours, 99), np.percentile(bare, 99)
    benchmark.extra_info.update(
        table=table,
        peer=peer,
        infer_us=round(float(np.median(ours)), 1),
        bare_us=round(base, 1),
        added_us=round(added, 1),
        added_percent=round(100 * added / base, 1),
        infer_p99_us=round(float(p99), 1),
        bare_p99_us=round(float(bare_p99), 1),
        p99_ratio=round(float(p99 / bare_p99), 2),
        over_short_us=round(taken.difference("ours", "short"), 1),
        own_us=round(float(np.median(own)), 2),
        own_p99_us=round(float(np.percentile(own, 99)), 2),
        run_alone_us=round(float(np.median(alone)), 1),
        ratio=round(1 + added / base, 3),
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
        "short": bare_of(peer, window, peer.backend.run),
        "alone": plain_run(peer),
    }
    record(benchmark, (hot if mode == "hot" else paced)(sides), f"{set_}, {mode}", "inference")
    benchmark.pedantic(sides["ours"], rounds=5, iterations=50)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("mode", ["hot", "paced"])
def test_infer_of_a_small_network(benchmark: BenchmarkFixture, network: Path, mode: str) -> None:
    """512 samples into 1.5 million weights, with the four monitors: a small model as devices run them."""
    window = np.random.default_rng(0).standard_normal((512, 1)).astype(np.float32)
    pipeline, peer = Pipeline(network, monitors=four_monitors()), Pipeline(network)
    sides = {
        "ours": lambda: pipeline.infer(window),
        "bare": bare_of(peer, window),
        "short": bare_of(peer, window, peer.backend.run),
        "alone": plain_run(peer),
    }
    record(benchmark, (hot if mode == "hot" else paced)(sides), f"1.5 M weights, four monitors, {mode}", "inference")
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
        "short": bare_of(peer, window, peer.backend.run),
        "alone": plain_run(peer),
    }
    record(benchmark, (hot if mode == "hot" else paced)(sides), f"five monitors, {mode}", "inference")
    benchmark.pedantic(sides["ours"], rounds=5, iterations=50)  # type: ignore[no-untyped-call]


def test_stream_a_window_with_five_monitors(benchmark: BenchmarkFixture, monitored: Pipeline) -> None:
    """Ten new samples and a prediction, against cutting the window out of an array by hand."""
    rows = np.tile(activity_window(), (2, 1))
    stream = monitored.stream(itertools.repeat(rows[:10]))
    next(stream)
    peer = Pipeline(ACTIVITY / "model.onnx")
    tensor, scores, run = peer.backend.inputs[0].array[0], peer.backend.outputs[0].array, plain_run(peer)

    def bare() -> object:
        tensor[...] = rows[10:110]
        run()
        return scores.tolist()

    short = bare_of(peer, rows[10:110], peer.backend.run)
    sides = {"ours": lambda: next(stream), "bare": bare, "short": short, "alone": run}
    record(benchmark, hot(sides), "a streamed window, hot", "inference")
    benchmark.pedantic(sides["ours"], rounds=5, iterations=50)  # type: ignore[no-untyped-call]


def test_an_empty_loop(benchmark: BenchmarkFixture) -> None:
    """What the machine does to any call of a few microseconds: a loop of Python that nothing can make slower."""

    def loop() -> object:
        for _ in range(150):
            pass
        return None

    times = hot({"loop": loop}).of("loop")
    p50, p99 = float(np.median(times)), float(np.percentile(times, 99))
    benchmark.extra_info.update(
        table="machine", peer="hot", p50_us=round(p50, 2), p99_us=round(p99, 2), p99_over_p50=round(p99 / p50, 2)
    )
    benchmark.pedantic(loop, rounds=5, iterations=50)  # type: ignore[no-untyped-call]


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
