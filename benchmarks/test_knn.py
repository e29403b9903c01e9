"""The kNN head beside numpy, and beside a loop over the stored vectors as the proof of concept had it.

Rounds of all sides alternate inside one benchmark. numpy's side is what a good script would write: the matrix-vector
product, the norms known beforehand, a partial sort. The loop computes one `numpy.linalg.norm` a stored vector and
sorts all distances; the proof of concept did so twice a sample. numpy gets one thread, as everything on a device does,
and `peer_all_threads_us` says what it does with all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from threadpoolctl import threadpool_limits
from tinylcm._ext.knn import KNN

ROUNDS, K, CLASSES = 30, 5, 4
SIZES = [(200, 256), (1000, 1280)]
# The proof of concept's `predict`, euclidean, and numpy's product with a partial sort, on one machine: microseconds.
POC_TO_NUMPY = {200: 1153 / 16.2, 1000: 7493 / 216.7}


def _times(calls: int, *sides: Callable[[], object]) -> list[float]:
    """Microseconds a call of each side: the best of the rounds, since the machine is shared."""
    found: list[list[float]] = [[] for _ in sides]
    for _ in range(ROUNDS + 2):
        for side, call in zip(found, sides, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                call()
            side.append((time.perf_counter() - start) / calls * 1e6)
    return [min(side) for side in found]


@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize(
    ("metric", "dtype"), [("euclidean", "float32"), ("cosine", "float32"), ("manhattan", "float32"), ("cosine", "int8")]
)
def test_knn(benchmark: BenchmarkFixture, n: int, d: int, metric: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    vectors: NDArray[np.float32] = rng.standard_normal((n, d)).astype(np.float32)
    query: NDArray[np.float32] = rng.standard_normal(d).astype(np.float32)
    head = KNN(d, CLASSES, k=K, capacity=n, metric=metric, dtype=dtype)
    head.add_many(vectors, rng.integers(0, CLASSES, n))
    norms = np.einsum("ij,ij->i", vectors, vectors)

    def peer() -> object:
        return np.argpartition(norms - 2 * (vectors @ query), K)[:K]

    def loop() -> object:
        return sorted((float(np.linalg.norm(vector - query)), index) for index, vector in enumerate(vectors))[:K]

    calls = 50 if n * d < 100_000 else 5
    with threadpool_limits(1):
        ours_us, peer_us = _times(calls, lambda: head.scores(query), peer)
        (loop_us,) = _times(1, loop)
    (all_threads_us,) = _times(calls, peer)
    benchmark.extra_info.update(
        table="knn",
        peer="numpy V @ x + argpartition",
        size=f"n={n} d={d} k={K} {metric} {dtype}",
        ours_us=round(ours_us, 1),
        peer_us=round(peer_us, 1),
        ratio=round(ours_us / peer_us, 2),
        peer_all_threads_us=round(all_threads_us, 1),
        times_the_poc=round(POC_TO_NUMPY[n] * peer_us / ours_us, 1),
        loop_us=round(loop_us),
        times_the_loop=round(loop_us / ours_us, 1),
    )
    benchmark.pedantic(head.scores, args=(query,), rounds=20, iterations=calls)  # type: ignore[no-untyped-call]
