"""`Pipeline.infer` and `Pipeline.stream` beside the bare `session.run` on the same model and inputs, in one run.

The ratio is what counts: the machine is shared. Rounds of both sides alternate inside one benchmark, so that a slow
moment hits both alike.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from tinylcm import Pipeline
from tinylcm.keys import init_keys
from tinylcm.package import parse_package
from tinylcm.publish import build

ACTIVITY = Path(__file__).parent.parent / "examples" / "activity"
ROUNDS, CALLS = 60, 300


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        (ACTIVITY / "model.onnx").read_bytes(), options, providers=["CPUExecutionProvider"]
    )


@pytest.fixture(scope="module")
def window() -> np.ndarray:
    series = np.load(ACTIVITY / "data" / "basic_motions.npz")["x_test"]
    return np.ascontiguousarray(series[0].T, dtype=np.float32)


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    keys = tmp_path_factory.mktemp("keys")
    init_keys(keys)
    data = build(ACTIVITY / "model.onnx", ACTIVITY / "model.toml", keys / "release.key")
    return Pipeline(parse_package(data, None))


def compare(benchmark: BenchmarkFixture, ours: Callable[[], object], peer: Callable[[], object], name: str) -> None:
    """Alternate rounds of both; the benchmark's own figure is ours, `extra_info` has the peer's and the ratio."""
    for _ in range(CALLS):
        ours()
        peer()
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(ROUNDS):
        for side, call in (("ours", ours), ("peer", peer)):
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            times[side].append((time.perf_counter() - start) / CALLS * 1e6)
    ours_us, peer_us = median(times["ours"]), median(times["peer"])
    benchmark.extra_info.update(
        peer=name, ours_us=round(ours_us, 2), peer_us=round(peer_us, 2), ratio=round(ours_us / peer_us, 3)
    )
    benchmark.pedantic(ours, rounds=20, iterations=CALLS)  # type: ignore[no-untyped-call]


def test_infer_of_a_plain_model(
    benchmark: BenchmarkFixture, session: onnxruntime.InferenceSession, window: np.ndarray
) -> None:
    pipeline, batch = Pipeline(ACTIVITY / "model.onnx"), window[np.newaxis]
    compare(benchmark, lambda: pipeline.infer(window), lambda: session.run(None, {"window": batch}), "session.run")


def test_infer_with_five_monitors(
    benchmark: BenchmarkFixture, session: onnxruntime.InferenceSession, window: np.ndarray, monitored: Pipeline
) -> None:
    batch = window[np.newaxis]
    compare(benchmark, lambda: monitored.infer(window), lambda: session.run(None, {"window": batch}), "session.run")


def test_stream_a_window_with_five_monitors(
    benchmark: BenchmarkFixture, session: onnxruntime.InferenceSession, window: np.ndarray, monitored: Pipeline
) -> None:
    """Ten new samples and a prediction, against slicing the window out of an array and the bare run."""
    rows = np.tile(window, (2, 1))
    stream = monitored.stream(itertools.repeat(rows[:10]))
    next(stream)

    def bare() -> object:
        return session.run(None, {"window": rows[10:110][np.newaxis]})

    compare(benchmark, lambda: next(stream), bare, "slice + session.run")
