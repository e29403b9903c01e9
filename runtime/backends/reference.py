"""A small network in plain NumPy: the slow and simple one that others are compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import read_arrays, take, write_arrays
from ..errors import ModelError
from . import BackendSpec
from .linear import ArrayBackend


def reference_arrays(layers: list[tuple[ArrayLike, ArrayLike]], *, softmax: bool = True) -> bytes:
    """A model file for `ReferenceBackend`: of each layer weights `[out, in]` and bias `[out]`."""
    arrays = {}
    for index, (weights, bias) in enumerate(layers):
        arrays[f"w{index}"] = np.asarray(weights, np.float32)
        arrays[f"b{index}"] = np.asarray(bias, np.float32)
    return write_arrays({**arrays, "softmax": np.array(int(softmax))})


class ReferenceBackend(ArrayBackend):
    """Dense layers with ReLU between them: see `Backend`. Output `scores`; `reference_arrays` writes the model.

    Raises:
        ModelError: a layer is missing or does not fit the one before.
    """

    def __init__(self, model: bytes, spec: BackendSpec) -> None:
        arrays = read_arrays(model, "the network")
        self._layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        while f"w{len(self._layers)}" in arrays:
            index = len(self._layers)
            width = self._layers[-1][0].shape[0] if index else None
            weights = take(arrays, f"w{index}", "the network", (None, width))
            self._layers.append((weights, take(arrays, f"b{index}", "the network", weights.shape[:1])))
        if not self._layers:
            raise ModelError("the network has no layer w0")
        self._softmax = bool(take(arrays, "softmax", "the network", (), np.int64))
        self._open(spec, self._layers[0][0].shape[1], "scores", self._layers[-1][0].shape[0])

    def _compute(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        for index, (weights, bias) in enumerate(self._layers):
            x = x @ weights.T + bias
            if index < len(self._layers) - 1:
                x = np.maximum(x, 0)
        if self._softmax:
            x = np.exp(x - x.max(axis=1, keepdims=True))
            x = x / x.sum(axis=1, keepdims=True)
        out[...] = x
