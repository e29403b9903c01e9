"""Two things that backends do beside running a window: how ONNX Runtime is called, and how TFLite state begins anew."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from tinylcm import Pipeline
from tinylcm.backends import BackendSpec, open_backend

from benchmarks.native import compiled

ROOT = Path(__file__).parent.parent
ACTIVITY = ROOT / "examples" / "activity"
ROUNDS, CALLS = 40, 250
PACED_HZ, PACED_CALLS, PACED_ROUNDS = 100.0, 25, 12
RESETS = 200
sys.path.insert(0, str(ROOT / "tests" / "support"))

from models import linear_model  # noqa: E402
from tflite_models import load  # noqa: E402


def library() -> str:
    """ONNX Runtime's shared library inside of its wheel."""
    spec = find_spec("onnxruntime")
    assert spec is not None and spec.submodule_search_locations
    return str(next((Path(spec.submodule_search_locations[0]) / "capi").glob("libonnxruntime.so.*")))


def model_of(kind: str, folder: Path) -> Path:
    """A model of some microseconds, or the activity model."""
    if kind == "activity":
        return ACTIVITY / "model.onnx"
    path = folder / "tiny.onnx"
    path.write_bytes(linear_model(1, samples=512))
    return path


def paced(sides: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median microseconds of single calls at 100 Hz, in rounds of a quarter of a second."""
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
    return {name: median(kept) / 1000 for name, kept in times.items()}


@pytest.mark.parametrize("kind", ["tiny", "activity"])
def test_onnx_from_c(benchmark: BenchmarkFixture, kind: str, tmp_path: Path) -> None:
    """The engine's C interface, opened with dlopen, beside IOBinding, on which the backend is built."""
    path = model_of(kind, tmp_path)
    pipeline = Pipeline(path)
    given, found = pipeline.backend.inputs[0], pipeline.backend.outputs[0]
    window = np.random.default_rng(0).standard_normal(given.array.shape).astype(np.float32)
    x, scores = window.copy(), np.zeros_like(found.array)
    session: Any = compiled("ort_floor").Session(library(), path.read_bytes(), given.name, x, found.name, scores)
    given.array[...] = window
    sides: dict[str, Callable[[], object]] = {
        "c": session.run,
        "binding": pipeline.backend.run,
        "infer": lambda: pipeline.infer(window[0]),
    }
    for call in sides.values():
        call()
    np.testing.assert_allclose(scores, found.array, rtol=1e-4, atol=1e-5)
    times: dict[str, list[float]] = {name: [] for name in ("loop", *sides)}
    for _ in range(ROUNDS):
        times["loop"].append(session.loop_us(CALLS))
        for name, call in sides.items():
            start = time.perf_counter_ns()
            for _ in range(CALLS):
                call()
            times[name].append((time.perf_counter_ns() - start) / 1000 / CALLS)
    us = {name: min(kept) for name, kept in times.items()}  # the machine is shared
    cold = paced(sides)
    benchmark.extra_info.update(
        table="engine",
        peer="C loop",
        c_loop_us=round(us["loop"], 2),
        c_from_python_us=round(us["c"], 2),
        c_ratio=round(us["c"] / us["loop"], 2),
        binding_us=round(us["binding"], 2),
        binding_ratio=round(us["binding"] / us["loop"], 2),
        infer_us=round(us["infer"], 2),
        paced_c_us=round(cold["c"], 1),
        paced_binding_us=round(cold["binding"], 1),
        paced_infer_us=round(cold["infer"], 1),
    )
    benchmark.pedantic(session.run, rounds=5, iterations=50)  # type: ignore[no-untyped-call]


def test_reset_of_resource_variables(benchmark: BenchmarkFixture) -> None:
    """A stream that begins anew every 50 ms; the spare has long been built."""
    model = load("counter")
    backend = open_backend("tflite", model)
    swaps: list[float] = []
    builds: list[float] = []
    gc.collect()
    for _ in range(RESETS):
        backend.run()
        time.sleep(0.05)
        start = time.perf_counter_ns()
        backend.reset()
        swaps.append((time.perf_counter_ns() - start) / 1000)
        if len(builds) < RESETS // 10:
            start = time.perf_counter_ns()
            other = open_backend("tflite", model, BackendSpec())
            builds.append((time.perf_counter_ns() - start) / 1000)
            del other
    benchmark.extra_info.update(
        table="reset",
        peer="open the model again",
        swap_us=round(median(swaps), 1),
        swap_p99_us=round(float(np.percentile(swaps, 99)), 1),
        wanted_us=1000,
        open_us=round(median(builds), 1),
        ratio=round(median(builds) / median(swaps), 1),
    )
    benchmark.pedantic(backend.reset, rounds=5, iterations=1)  # type: ignore[no-untyped-call]
