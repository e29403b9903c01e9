"""The steps before the model beside the same in numpy: one pass into the tensor, and a second of sound to mel bands.

Rounds of both sides alternate inside one benchmark, so that a slow moment of a shared machine hits both alike. Calls
are from Python: about 0.1 us of each figure of ours is the call.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from tinylcm.preprocess import hann, make_plan, mel_bands, parse_steps

ROUNDS = 40
CHANNELS = 3
MEL = {"op": "log_mel", "frame": 640, "hop": 320, "mels": 40}
RATE_HZ = 16000
FFT = 1024


def compare(benchmark: BenchmarkFixture, ours: Callable[[], object], peer: Callable[[], object], calls: int) -> None:
    """The benchmark's own figure is ours, `extra_info` has the best round of both and their ratio."""
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(ROUNDS + 2):
        for side, call in (("ours", ours), ("peer", peer)):
            start = time.perf_counter()
            for _ in range(calls):
                call()
            times[side].append((time.perf_counter() - start) / calls * 1e6)
    ours_us, peer_us = min(times["ours"]), min(times["peer"])
    benchmark.extra_info.update(
        table="preprocess",
        peer="numpy",
        ours_us=round(ours_us, 3),
        peer_us=round(peer_us, 3),
        ratio=round(ours_us / peer_us, 3),
    )
    benchmark.pedantic(ours, rounds=20, iterations=calls)  # type: ignore[no-untyped-call]


def normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize("values", [120, 512, 3072])
def test_copy_and_check(benchmark: BenchmarkFixture, values: int) -> None:
    window, out = normal(values, 1), np.zeros((values, 1), np.float32)
    plan = make_plan((), values, 1)

    def peer() -> None:
        if not np.isfinite(window).all():
            raise ValueError
        out[:] = window

    compare(benchmark, lambda: plan.apply(window, out), peer, 1000)


@pytest.mark.parametrize("values", [120, 3072])
def test_gather_standardise_and_quantise(benchmark: BenchmarkFixture, values: int) -> None:
    rows = values // CHANNELS
    window, out = normal(rows, CHANNELS), np.zeros((rows, CHANNELS), np.int8)
    head, tail = window[: rows // 3].copy(), window[rows // 3 :].copy()
    mean, std, scale, zero_point = [0.1, 0.2, 0.3], [1.0, 2.0, 3.0], 0.02, -3
    steps = parse_steps([{"op": "standardise", "mean": mean, "std": std}], "benchmark")
    plan = make_plan(steps, rows, CHANNELS, dtype="int8", scale=scale, zero_point=zero_point)
    gain = (1 / (np.array(std) * scale)).astype(np.float32)
    offset = (-np.array(mean) / (np.array(std) * scale)).astype(np.float32)

    def peer() -> None:
        x = np.concatenate([head, tail])
        if not np.isfinite(x).all():
            raise ValueError
        np.clip(np.rint(x * gain + offset) + zero_point, -128, 127, out=x)
        out[:] = x.astype(np.int8)

    compare(benchmark, lambda: plan.apply(head, out, tail), peer, 300)


def test_log_mel_of_a_second(benchmark: BenchmarkFixture) -> None:
    window = normal(RATE_HZ, 1)
    plan = make_plan(parse_steps([MEL], "benchmark"), RATE_HZ, 1, RATE_HZ)
    out, expected = np.zeros(plan.shape, np.float32), np.zeros(plan.shape, np.float32)
    weights = np.zeros((40, FFT // 2 + 1))
    bands = mel_bands(RATE_HZ, FFT, 40, 0.0, RATE_HZ / 2, htk=False, unit_area=True)
    for row, (first, values) in zip(weights, bands, strict=True):
        row[first : first + len(values)] = values
    frames = np.lib.stride_tricks.sliding_window_view(window[:, 0], 640)[::320]

    def peer() -> None:
        power = np.abs(np.fft.rfft(frames * hann(640), FFT, axis=1)) ** 2
        expected[:] = np.log(np.maximum(power @ weights.T, 1e-10))

    compare(benchmark, lambda: plan.apply(window, out), peer, 5)
    np.testing.assert_allclose(out, expected, atol=1e-4)
