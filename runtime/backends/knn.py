"""k nearest neighbours as a model: reference vectors in a `.npz`, searched by the compiled `KNN`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tinylcm._ext.knn import DTYPES, KNN, METRICS, WEIGHTS

from ..arrays import read_arrays, take, write_arrays
from ..errors import ConfigError, InputError, ModelError
from . import BackendSpec, Tensor, run_one_by_one
from .linear import check_spec, choose

CAPACITY_SHARE: Final = 2  # room to grow on the device: that many times what the package brings


def knn_arrays(
    vectors: ArrayLike,
    labels: ArrayLike,
    *,
    k: int = 5,
    metric: str = "euclidean",
    weights: str = "uniform",
    dtype: str = "float32",
    classes: int | None = None,
) -> bytes:
    """A model file for `KNNBackend`.

    Args:
        vectors: reference vectors `[n, d]`, oldest first.
        labels: their classes, `[n]`, integers from 0.
        k, metric, weights, dtype: see `tinylcm._ext.knn.KNN`.
        classes: number of labels; by default the greatest one and 1.

    Raises:
        ConfigError, InputError: what `KNN` refuses.
    """
    rows, kinds = np.asarray(vectors), np.asarray(labels)
    if rows.ndim != 2 or kinds.shape != rows.shape[:1] or not len(rows) or kinds.dtype.kind not in "iu":
        raise InputError(f"expected vectors [n, d] and integer labels [n], got {rows.shape} and {kinds.shape}")
    count = int(kinds.max()) + 1 if classes is None else classes
    head = KNN(rows.shape[1], count, k, metric, dtype, weights, len(rows))
    head.add_many(rows, kinds)
    return _file_of(head)


def _file_of(head: KNN) -> bytes:
    codes = {
        "k": head.k,
        "metric": METRICS.index(head.metric),
        "weighted": WEIGHTS.index(head.weights),
        "classes": head.classes,
    }
    return write_arrays({**head.to_arrays(), **{name: np.array(code) for name, code in codes.items()}})


class KNNBackend:
    """Neighbours that vote: see `Backend`. Input `x` float32 `[1, d]`; outputs `scores` `[1, classes]` and `distance`
    `[1, 1]`, the mean distance to the neighbours.

    The model is a `.npz` with `vectors` `[n, d]` (float32, or int8 with `scales` `[n]`), `labels` `[n]`, and the
    numbers `k`, `metric`, `weighted` and `classes`; `knn_arrays` writes it.

    Raises:
        ModelError: an array is missing or wrong, or `spec` asks for what there is not.

    Attributes:
        knn: the store, for adding and removing vectors.
    """

    stateful = False

    def __init__(self, model: bytes, spec: BackendSpec) -> None:
        arrays = read_arrays(model, "the kNN")
        int8 = "scales" in arrays
        vectors = take(arrays, "vectors", "the kNN", (None, None), np.int8 if int8 else np.float32)
        labels = take(arrays, "labels", "the kNN", (len(vectors),), np.int32)
        scales = take(arrays, "scales", "the kNN", (len(vectors),)) if int8 else None
        numbers = {
            name: int(take(arrays, name, "the kNN", (), np.int64)) for name in ("k", "metric", "weighted", "classes")
        }
        if not 0 <= numbers["metric"] < len(METRICS) or not 0 <= numbers["weighted"] < len(WEIGHTS):
            raise ModelError(f"the kNN's metric {numbers['metric']} or weighted {numbers['weighted']} is not known")
        try:
            self.knn = KNN(
                vectors.shape[1],
                numbers["classes"],
                numbers["k"],
                METRICS[numbers["metric"]],
                DTYPES[int8],
                WEIGHTS[numbers["weighted"]],
                CAPACITY_SHARE * len(vectors),
                "balanced",
            )
            self.knn.load_arrays(vectors, labels, scales)
        except (ConfigError, InputError) as error:
            raise ModelError(f"the kNN's arrays: {error}") from error
        self._x = np.zeros((1, self.knn.d), dtype=np.float32)
        self._scores = np.zeros((1, self.knn.classes), dtype=np.float32)
        self._distance = np.zeros((1, 1), dtype=np.float32)
        self.inputs: tuple[Tensor, ...] = (Tensor("x", self._x),)
        check_spec(spec, self.inputs)
        outputs = (Tensor("scores", self._scores), Tensor("distance", self._distance))
        self.outputs = choose(outputs, spec.outputs or ("scores",))
        self._row, self._vote = self._x[0], self._scores[0]

    def run(self) -> None:
        """Search, and let the neighbours vote."""
        try:
            self.knn.query_into(self._row, self._vote)
        except InputError as error:
            raise ModelError(f"the kNN was given {error}") from error
        self._distance[0, 0] = self.knn.distance

    def run_many(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """One search after another."""
        return run_one_by_one(self, inputs)

    def reset(self) -> None:
        """Nothing: a search remembers nothing."""

    def to_file(self) -> bytes:
        """The model file of what it holds now."""
        return _file_of(self.knn)
