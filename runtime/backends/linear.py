"""Linear models from plain arrays: scaler, projection, classifier. Files are `.npz`, without pickle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import read_arrays, take, write_arrays
from ..errors import InputError, ModelError
from . import BackendSpec, Tensor

KINDS: Final = ("softmax", "one_vs_rest", "raw")


def check_spec(spec: BackendSpec, inputs: Sequence[Tensor]) -> None:
    """Refuse what models of arrays do not have.

    Raises:
        ModelError: state, constants, an input that does not exist, or another shape than its own.
    """
    if spec.state or spec.constants:
        raise ModelError("a model of arrays has no state and no constants")
    known = {tensor.name: tensor.array.shape for tensor in inputs}
    for name, shape in spec.shapes.items():
        if name and name not in known:
            raise ModelError(f"the model has no input {name!r}; it has {', '.join(known)}")
        own = known[name or inputs[0].name]
        if tuple(shape) != own:
            raise ModelError(
                f"input {name or inputs[0].name!r} has shape {list(own)} in the model, {list(shape)} asked"
            )


def choose(outputs: Sequence[Tensor], wanted: Sequence[str]) -> tuple[Tensor, ...]:
    """The outputs of these names; all when none is named.

    Raises:
        ModelError: there is no such output.
    """
    known = {tensor.name: tensor for tensor in outputs}
    if unknown := [name for name in wanted if name not in known]:
        raise ModelError(f"the model has no output {unknown[0]!r}; it has {', '.join(known)}")
    return tuple(known[name] for name in wanted or known)


def scaler_arrays(mean: ArrayLike, scale: ArrayLike) -> bytes:
    """A model file for `ScalerBackend`: scikit-learn's `StandardScaler` has them as `mean_` and `scale_`."""
    return write_arrays({"mean": np.asarray(mean, np.float32), "scale": np.asarray(scale, np.float32)})


def pca_arrays(mean: ArrayLike, components: ArrayLike, variance: ArrayLike | None = None) -> bytes:
    """A model file for `PCABackend`: scikit-learn's `PCA` has `mean_`, `components_`, and with `whiten=True` its
    `explained_variance_` is the variance."""
    arrays = {"mean": np.asarray(mean, np.float32), "components": np.asarray(components, np.float32)}
    if variance is not None:
        arrays["variance"] = np.asarray(variance, np.float32)
    return write_arrays(arrays)


def linear_arrays(weights: ArrayLike, bias: ArrayLike, kind: str = "softmax") -> bytes:
    """A model file for `LinearBackend`.

    Args:
        weights: `[classes, d]`; scikit-learn's `LogisticRegression` has them as `coef_`, of two classes only the
            second's row: give `[-row / 2, row / 2]`, and the same of `intercept_`.
        bias: `[classes]`.
        kind: `softmax`, `one_vs_rest` (a sigmoid for each class, brought to a sum of 1), or `raw` (w x + b as it is).

    Raises:
        InputError: the kind is not known.
    """
    if kind not in KINDS:
        raise InputError(f"kind {kind!r} is not known, expected {', '.join(KINDS)}")
    arrays = {"weights": np.asarray(weights, np.float32), "bias": np.asarray(bias, np.float32)}
    return write_arrays({**arrays, "kind": np.array(KINDS.index(kind))})


class ArrayBackend:
    """Base: one float32 row in, `x` `[1, d]`, one out; `_compute` does all rows it is given."""

    stateful = False
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def _open(self, spec: BackendSpec, d: int, output: str, size: int) -> None:
        self._x = np.zeros((1, d), dtype=np.float32)
        self._y = np.zeros((1, size), dtype=np.float32)
        self.inputs = (Tensor("x", self._x),)
        check_spec(spec, self.inputs)
        self.outputs = choose((Tensor(output, self._y),), spec.outputs)

    def _compute(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Write rows `[n, d]` as rows `[n, m]`."""
        raise ModelError(f"{type(self).__name__} computes nothing")

    def run(self) -> None:
        """Compute the output from the input."""
        self._compute(self._x, self._y)

    def run_many(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute n windows as one matrix."""
        result = np.zeros((len(inputs[0]), self._y.shape[1]), dtype=np.float32)
        self._compute(np.ascontiguousarray(inputs[0], dtype=np.float32), result)
        return [result]

    def reset(self) -> None:
        """Nothing: it remembers nothing."""


class ScalerBackend(ArrayBackend):
    """(x - mean) / scale: see `Backend`. Output `features` `[1, d]`; `scaler_arrays` writes the model.

    Raises:
        ModelError: an array is missing or wrong, or a scale is not positive.
    """

    def __init__(self, model: bytes, spec: BackendSpec) -> None:
        arrays = read_arrays(model, "the scaler")
        self._mean = take(arrays, "mean", "the scaler", (None,))
        scale = take(arrays, "scale", "the scaler", self._mean.shape)
        if not (scale > 0).all():
            raise ModelError("the scaler: a value of `scale` is not positive")
        self._factor = np.float32(1) / scale
        self._open(spec, len(scale), "features", len(scale))

    def _compute(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        np.subtract(x, self._mean, out=out)
        np.multiply(out, self._factor, out=out)


class PCABackend(ArrayBackend):
    """components (x - mean), divided by the root of `variance` when there is one: see `Backend`.

    Output `features` `[1, m]`; `pca_arrays` writes the model.

    Raises:
        ModelError: an array is missing or wrong, or a variance is not positive.
    """

    def __init__(self, model: bytes, spec: BackendSpec) -> None:
        arrays = read_arrays(model, "the PCA")
        components = take(arrays, "components", "the PCA", (None, None))
        mean = take(arrays, "mean", "the PCA", components.shape[1:])
        if "variance" in arrays:
            variance = take(arrays, "variance", "the PCA", components.shape[:1])
            if not (variance > 0).all():
                raise ModelError("the PCA: a value of `variance` is not positive")
            components = components / np.sqrt(variance)[:, np.newaxis]
        self._matrix = np.ascontiguousarray(components.T)
        # In float64 once, so that subtracting the projected mean costs no precision against subtracting first.
        self._offset = (components.astype(np.float64) @ mean.astype(np.float64)).astype(np.float32)
        self._open(spec, components.shape[1], "features", components.shape[0])

    def _compute(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        np.matmul(x, self._matrix, out=out)
        np.subtract(out, self._offset, out=out)


class LinearBackend(ArrayBackend):
    """A linear classifier: see `Backend`. Output `scores` `[1, classes]`; `linear_arrays` writes the model.

    Raises:
        ModelError: an array is missing or wrong.
    """

    def __init__(self, model: bytes, spec: BackendSpec) -> None:
        arrays = read_arrays(model, "the linear model")
        weights = take(arrays, "weights", "the linear model", (None, None))
        self._bias = take(arrays, "bias", "the linear model", weights.shape[:1])
        kind = int(take(arrays, "kind", "the linear model", (), np.int64))
        if not 0 <= kind < len(KINDS):
            raise ModelError(f"the linear model's kind {kind} is not known")
        self._kind = KINDS[kind]
        self._matrix = np.ascontiguousarray(weights.T)
        self._open(spec, weights.shape[1], "scores", weights.shape[0])

    def _compute(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        np.matmul(x, self._matrix, out=out)
        np.add(out, self._bias, out=out)
        if self._kind == "raw":
            return
        if self._kind == "softmax":
            np.subtract(out, out.max(axis=1, keepdims=True), out=out)
            np.exp(out, out=out)
        else:
            np.clip(out, -80, 80, out=out)  # exp stays within float32
            np.negative(out, out=out)
            np.exp(out, out=out)
            np.add(out, 1, out=out)
            np.reciprocal(out, out=out)
        np.divide(out, out.sum(axis=1, keepdims=True), out=out)
