"""The k nearest neighbours against brute force in double."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import tinylcm._ext.knn as knn_module
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylcm import ConfigError, InputError, ModelError
from tinylcm._ext.knn import KNN

METRICS = ("euclidean", "manhattan", "cosine")


def distances(vectors: np.ndarray, x: np.ndarray, metric: str) -> np.ndarray:
    """The oracle, in float64."""
    v, q = vectors.astype(np.float64), np.asarray(x, dtype=np.float32).astype(np.float64)
    if metric == "euclidean":
        return np.linalg.norm(v - q, axis=1)
    if metric == "manhattan":
        return np.abs(v - q).sum(axis=1)
    norms = np.linalg.norm(v, axis=1) * np.linalg.norm(q)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(norms > 0, 1 - (v @ q) / norms, 1.0)


def filled(vectors: np.ndarray, labels: np.ndarray | None = None, **arguments: object) -> KNN:
    kinds = np.arange(len(vectors)) % 3 if labels is None else labels
    head = KNN(vectors.shape[1], 3, capacity=max(1, len(vectors)), **arguments)  # type: ignore[arg-type]
    head.add_many(vectors, kinds)
    return head


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (3, 7, 5), (100, 33, 5), (500, 128, 20), (300, 1280, 1)])
def test_neighbours_are_those_of_brute_force(metric: str, n: int, d: int, k: int) -> None:
    rng = np.random.default_rng(n + d)
    vectors = rng.standard_normal((n, d)).astype(np.float32)
    head = filled(vectors, k=k, metric=metric)
    for x in rng.standard_normal((10, d)):
        true = distances(vectors, x, metric)
        indices, found = head.neighbours(x)
        assert found == pytest.approx(np.sort(true)[:k], rel=1e-6, abs=1e-7)
        assert true[indices] == pytest.approx(found, rel=1e-6, abs=1e-7)
        assert head.distance == pytest.approx(found.mean())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(METRICS), st.integers(1, 12), st.integers(1, 20))
def test_scores_are_the_vote_of_the_neighbours(seed: int, metric: str, k: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (n, 4)).astype(np.float32)  # many ties
    labels = rng.integers(0, 3, n)
    head = filled(vectors, labels, k=k, metric=metric)
    x = rng.integers(-2, 3, 4)
    # Of equal distances the newer one is the nearer: the greater index here.
    true = np.round(distances(vectors, x, metric), 9)
    order = sorted(range(n), key=lambda i: (true[i], -i))[:k]
    votes = np.bincount(labels[order], minlength=3) / len(order)
    if metric != "cosine" or not np.isclose(np.diff(np.sort(true)), 0, atol=1e-6).any():
        assert head.scores(x) == pytest.approx(votes, abs=1e-6)
    assert head.scores(x).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_near_vectors_far_from_the_origin_are_told_apart(metric: str) -> None:
    rng = np.random.default_rng(1)
    centre = rng.standard_normal(64) * 1e4
    vectors = (centre + rng.standard_normal((400, 64)) * 0.05).astype(np.float32)
    head = filled(vectors, k=5, metric=metric)
    for x in (centre + rng.standard_normal((20, 64)) * 0.05).astype(np.float32):
        true = distances(vectors, x, metric)
        assert head.neighbours(x)[1] == pytest.approx(np.sort(true)[:5], rel=1e-6)
    assert head.neighbours(vectors[7])[1][0] == 0.0 and head.neighbours(vectors[7])[0][0] == 7


def test_many_copies_of_one_vector_are_all_seen_and_the_newest_are_nearest() -> None:
    vectors = np.ones((200, 8), dtype=np.float32)
    head = filled(vectors, k=3)
    assert head.neighbours(np.ones(8))[0].tolist() == [199, 198, 197]


@pytest.mark.parametrize("metric", METRICS)
def test_bytes_are_a_quarter_and_nearly_as_good(metric: str) -> None:
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((500, 64)).astype(np.float32)
    exact, coarse = filled(vectors, k=10, metric=metric), filled(vectors, k=10, metric=metric, dtype="int8")
    assert np.abs(coarse.vectors() - vectors).max() < np.abs(vectors).max() / 127
    shared = 0
    for x in rng.standard_normal((50, 64)):
        indices, found = coarse.neighbours(x)
        shared += len(set(indices) & set(exact.neighbours(x)[0]))
        assert found == pytest.approx(distances(vectors, x, metric)[indices], rel=0.05, abs=0.02)
    assert shared >= 0.9 * 500


def test_a_zero_vector_is_at_distance_1_from_everything_under_cosine() -> None:
    head = filled(np.array([[0.0, 0.0], [1.0, 0.0]], dtype=np.float32), k=2, metric="cosine")
    assert head.neighbours([0.0, 0.0])[1].tolist() == [1.0, 1.0]
    assert sorted(head.neighbours([2.0, 0.0])[1]) == [0.0, 1.0]


def test_weights_by_distance_and_an_exact_hit_decides_alone() -> None:
    vectors = np.array([[0.0], [1.0], [3.0]], dtype=np.float32)
    head = filled(vectors, np.array([0, 1, 1]), k=3, weights="distance")
    scores = head.scores([0.5])
    assert scores[:2] == pytest.approx(np.array([2.0, 2.0 + 0.4]) / 4.4)
    assert head.scores([0.0])[0] == 1.0 and head.predict([0.0]) == 0


def test_a_full_store_gives_up_the_oldest() -> None:
    head = KNN(1, 2, 1, capacity=3)
    for value in range(5):
        head.add([float(value)], value % 2)
    assert sorted(head.vectors()[:, 0]) == [2.0, 3.0, 4.0] and head.size == 3


def test_or_the_oldest_of_the_label_that_has_most() -> None:
    head = KNN(1, 2, 1, capacity=4, eviction="balanced")
    for value, label in ((0, 1), (1, 0), (2, 0), (3, 0), (4, 1)):
        head.add([float(value)], label)
    assert sorted(head.vectors()[:, 0]) == [0.0, 2.0, 3.0, 4.0]
    assert head.evict(2) == 2 and head.size == 2
    assert head.evict(10) == 2 and head.size == 0


def test_remove_forgets_one() -> None:
    head = filled(np.arange(5, dtype=np.float32)[:, None], k=1)
    head.remove(1)
    assert sorted(head.vectors()[:, 0]) == [0.0, 2.0, 3.0, 4.0]
    for wrong in (-1, 4):
        with pytest.raises(InputError, match="there are 4"):
            head.remove(wrong)


def covering_radius(kept: np.ndarray, vectors: np.ndarray) -> float:
    return float(np.linalg.norm(vectors[:, None] - kept[None], axis=2).min(axis=1).max())


def test_condensing_keeps_what_covers_best() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((300, 3)).astype(np.float32)
    labels = np.repeat([0, 1, 2], 100)
    head = filled(vectors, labels, k=5)
    assert head.condense(30) == 270 and head.size == 30
    assert np.bincount(head.labels()).tolist() == [10, 10, 10]
    kept = head.vectors()
    chance = [covering_radius(vectors[rng.permutation(300)[:30]], vectors) for _ in range(20)]
    assert covering_radius(kept, vectors) < min(chance)
    assert {tuple(row) for row in kept} <= {tuple(row) for row in vectors}
    assert head.condense(30) == 0


def test_balanced_condensing_keeps_the_newest_of_each_label() -> None:
    head = filled(np.arange(9, dtype=np.float32)[:, None], np.array([0, 0, 0, 0, 0, 0, 0, 1, 2]), k=1)
    head.condense(4, "balanced")
    assert sorted(head.vectors()[:, 0]) == [5.0, 6.0, 7.0, 8.0]
    with pytest.raises(ConfigError):
        head.condense(0)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_arrays_bring_everything_back(dtype: str) -> None:
    rng = np.random.default_rng(4)
    head = KNN(6, 3, 4, "euclidean", dtype, "uniform", 20)
    for value in rng.standard_normal((30, 6)):
        head.add(value, int(rng.integers(0, 3)))
    twin = KNN(6, 3, 4, "euclidean", dtype, "uniform", 20)
    twin.load_arrays(**head.to_arrays())
    for x in rng.standard_normal((20, 6)):
        assert np.array_equal(twin.scores(x), head.scores(x))
        assert np.array_equal(twin.neighbours(x)[1], head.neighbours(x)[1])
    for name, array in head.to_arrays().items():
        assert np.array_equal(array, twin.to_arrays()[name])


@pytest.mark.parametrize(
    ("vector", "label"),
    [([1.0], 0), ([1.0, float("nan")], 0), ([1.0, 1e39], 0), ([1.0, 2.0], 3), ([1.0, 2.0], -1), (["a", "b"], 0)],
)
def test_what_does_not_fit_changes_nothing(vector: list, label: int) -> None:
    head = filled(np.ones((2, 2), dtype=np.float32), k=1)
    before = head.to_arrays()
    with pytest.raises(InputError):
        head.add(vector, label)
    assert all(np.array_equal(before[name], array) for name, array in head.to_arrays().items())


def test_an_empty_store_and_wrong_parameters_say_so() -> None:
    with pytest.raises(ModelError, match="has no reference vectors"):
        KNN(2, 2).scores([0.0, 0.0])
    for arguments in ((0, 2), (2, 0), (2, 2, 0), (2, 2, 300), (2, 2, 1, "hamming"), (2, 2, 1, "cosine", "int4")):
        with pytest.raises(ConfigError):
            KNN(*arguments)
    head = filled(np.ones((2, 2), dtype=np.float32), k=1)
    with pytest.raises(InputError):
        head.query_into(np.ones(3, dtype=np.float32), np.zeros(3, dtype=np.float32))
    with pytest.raises(InputError):
        head.load_arrays(np.ones((3, 2)), np.zeros(3, dtype=int))


def test_the_example_in_the_docstring() -> None:
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    for test in finder.find(KNN, "KNN", module=knn_module, globs={"KNN": KNN}):
        assert runner.run(test).failed == 0
