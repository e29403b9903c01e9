"""A backend outside TinyMLOps: one channel's mean over the window, compared with a threshold."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tinylcm.backends import BackendSpec, Tensor
from tinylcm.errors import ModelError


class ThresholdBackend:
    """Input `x` float32 `[1, ..., channels]`, output `scores` float32 `[1, 2]`: see `tinylcm.backends.Backend`.

    The model is JSON such as `{"channel": 2, "threshold": 0.5, "labels": 2}`.

    Raises:
        ModelError: the JSON is not of that kind, or `spec` asks for what there is not.
    """

    stateful = False

    def __init__(self, model: bytes, spec: BackendSpec) -> None:
        try:
            document = json.loads(model)
            self._channel, self._threshold = int(document["channel"]), float(document["threshold"])
            labels = int(document["labels"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ModelError(f"expected JSON with channel, threshold and labels: {error!r}") from error
        if self._channel < 0 or labels != 2 or not math.isfinite(self._threshold):
            raise ModelError(f"expected a channel from 0, a finite threshold and 2 labels, got {document}")
        shape = spec.shapes.get("x", spec.shapes.get("", (1, self._channel + 1)))
        if len(shape) < 2 or shape[0] != 1 or math.prod(shape) < 1 or shape[-1] <= self._channel:
            raise ModelError(f"expected an input [1, ..., more than {self._channel} channels], got {list(shape)}")
        unknown = (set(spec.shapes) - {"", "x"}) | (set(spec.outputs) - {"scores"})
        if unknown or spec.state or spec.constants:
            raise ModelError(f"the model has x and scores, no state, no constants, and no {sorted(unknown)}")
        self.inputs = (Tensor("x", np.zeros(shape, dtype=np.float32)),)
        self.outputs = (Tensor("scores", np.zeros((1, 2), dtype=np.float32)),)

    def run(self) -> None:
        """Compare."""
        self.outputs[0].array[...] = self.run_many([self.inputs[0].array])[0]

    def run_many(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Compare each window."""
        values = inputs[0][..., self._channel]
        high = values.mean(axis=tuple(range(1, values.ndim))) > self._threshold
        return [np.stack([~high, high], axis=1).astype(np.float32)]

    def reset(self) -> None:
        """Nothing: it remembers nothing."""
