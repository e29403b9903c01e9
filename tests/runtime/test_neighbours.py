"""The neighbours of a kNN head on the device: taken, given up, condensed, and taken home as a file."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from kinds import packaged
from models import linear_model
from tinylcm import ConfigError, InputError, Pipeline
from tinylcm.backends.knn import knn_arrays
from tinylcm.backends.linear import scaler_arrays
from tinylcm.package import Package


def head(*, version: str = "1.0", vectors: int = 2) -> Package:
    """Windows of two values, less 10, beside vectors at [0, 0] (a) and [4, 4] (b)."""
    points = np.repeat([[0.0, 0.0], [4.0, 4.0]], (vectors + 1) // 2, axis=0)[:vectors].astype(np.float32)
    labels = (points[:, 0] > 2).astype(np.int64)
    return packaged(
        {
            "format": "chain",
            "version": version,
            "input": {"name": "x", "shape": [1, 2]},
            "stages": [{"name": "scaler", "format": "scaler"}, {"name": "head", "format": "knn"}],
        },
        {
            "stage0.npz": scaler_arrays([10, 10], [1, 1]),
            "stage1.npz": knn_arrays(points, labels, k=1, classes=2),
        },
    )


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline(head())


def test_a_window_is_taken_as_the_stages_before_make_it(pipeline: Pipeline) -> None:
    assert pipeline.infer([12.5, 12.5]).label == "b" and len(pipeline.neighbours) == 2
    assert pipeline.neighbours.add([12.4, 12.4], "a") == 2
    assert pipeline.infer([12.5, 12.5]).label == "a"
    assert pipeline.neighbours.counts() == {"a": 2, "b": 1} and pipeline.neighbours.capacity == 4
    pipeline.neighbours.remove(2)
    assert pipeline.infer([12.5, 12.5]).label == "b"


def test_a_full_store_gives_up_the_oldest_of_the_label_that_has_most(pipeline: Pipeline) -> None:
    for at in (12.6, 12.7, 12.8):
        pipeline.neighbours.add([at, at], "a")
    assert pipeline.neighbours.counts() == {"a": 3, "b": 1}
    assert pipeline.infer([10.0, 10.0]).label == "a" and pipeline.infer([12.5, 12.5]).label == "a"


def test_evicting_stops_at_the_last_one(pipeline: Pipeline) -> None:
    assert pipeline.neighbours.evict(5) == 1 and len(pipeline.neighbours) == 1
    assert pipeline.neighbours.evict(-1) == 0
    with pytest.raises(InputError, match="the last neighbour stays"):
        pipeline.neighbours.remove(0)


def test_condensing_keeps_so_many_of_each_label() -> None:
    pipeline = Pipeline(head(vectors=40))
    assert pipeline.neighbours.condense(4) == 36
    assert pipeline.neighbours.counts() == {"a": 2, "b": 2}
    assert pipeline.infer([14.0, 14.0]).label == "b"
    with pytest.raises(ConfigError, match="n >= 1"):
        pipeline.neighbours.condense(0)


def test_the_file_brings_back_what_was_taken(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.neighbours.add([12.4, 12.4], "a")
    path = tmp_path / "head.npz"
    path.write_bytes(pipeline.neighbours.to_file())
    alone = Pipeline(path, labels=["a", "b"])
    assert alone.infer([2.5, 2.5]).label == "a" and len(alone.neighbours) == 3


def test_a_swap_brings_the_package_s_own(pipeline: Pipeline) -> None:
    neighbours = pipeline.neighbours
    neighbours.add([12.4, 12.4], "a")
    pipeline.swap(head(version="2.0"))
    assert len(neighbours) == 2


@pytest.mark.parametrize(
    ("window", "label", "problem"),
    [([12.4, 12.4], "c", "'c' is not one of a, b"), ([12.4], "a", "expected shape"), ([np.nan, 1], "a", "NaN")],
)
def test_what_does_not_fit_is_refused(pipeline: Pipeline, window: list[float], label: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        pipeline.neighbours.add(window, label)
    assert len(pipeline.neighbours) == 2


def test_a_model_without_a_knn_says_so(tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear_model())
    with pytest.raises(ConfigError, match="does not end in a kNN"):
        Pipeline(path).neighbours.evict()


def test_predictions_go_on_while_neighbours_come_and_go(pipeline: Pipeline) -> None:
    stop = threading.Event()

    def learn() -> None:
        while not stop.is_set():
            pipeline.neighbours.add([14.1, 14.1], "b")
            pipeline.neighbours.condense(2, "balanced")

    thread = threading.Thread(target=learn)
    thread.start()
    try:
        labels = {pipeline.infer([14.0, 14.0]).label for _ in range(3000)}
    finally:
        stop.set()
        thread.join()
    assert labels == {"b"}
