"""The TFLite models of tests/data, written by scripts/make_tflite.py, and what each computes, in plain NumPy.

Every function takes windows `[n, *shape]` in the order in which they come, and gives `[n, *shape]` for each output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).parent.parent / "data"
Arrays = list[NDArray[Any]]


def load(name: str) -> bytes:
    """The bytes of a model."""
    return (DATA / f"{name}.tflite").read_bytes()


def _quantise(real: NDArray[Any], scale: float, zero_point: int, dtype: type) -> NDArray[Any]:
    bounds = np.iinfo(dtype)
    return np.asarray(np.clip(np.rint(real / scale) + zero_point, bounds.min, bounds.max), dtype)


def fc_int8(inputs: Arrays) -> Arrays:
    """A dense layer, int8 `[1, 16]` by 0.05 and -3 to int8 `[1, 4]` by 0.25 and 5."""
    weights = (np.arange(64).reshape(4, 16) * 37 % 101 - 50) * 0.02
    bias = np.array([100, -200, 300, -400]) * 0.05 * 0.02
    real = (inputs[0].astype(np.float64) + 3) * 0.05 @ weights.T + bias
    return [_quantise(real, 0.25, 5, np.int8)]


def fc_float(inputs: Arrays) -> Arrays:
    """Logits and softmax of the `linear_model` of tests/support/models.py."""
    z = inputs[0].astype(np.float64) @ np.random.default_rng(3).standard_normal((3, 2)).astype(np.float32)
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return [z, powers / powers.sum(axis=1, keepdims=True)]


def two_by_two(inputs: Arrays) -> Arrays:
    """Sum and difference."""
    return [inputs[0] + inputs[1], inputs[0] - inputs[1]]


def running_sum(inputs: Arrays) -> Arrays:
    """What `counter` and `recurrent` give: the sum of all windows so far."""
    return [np.cumsum(inputs[0], axis=0, dtype=np.float64)]


def carried(inputs: Arrays) -> Arrays:
    """The same, int8 by 0.5 and 10, which clips at every step."""
    total, results = np.zeros(inputs[0].shape[1:], dtype=np.int64), []
    for window in inputs[0].astype(np.int64) - 10:
        total = np.clip(total + window, -138, 117)
        results.append(total + 10)
    return [np.array(results, dtype=np.int8).reshape(inputs[0].shape)]


def image_uint8(inputs: Arrays) -> Arrays:
    """Mean colour of `[1, 8, 8, 3]`, to the nearest."""
    return [np.rint(inputs[0].mean(axis=(1, 2))).astype(np.uint8)]
