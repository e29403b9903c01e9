"""The format `board` for TinyLCM: a package for boards runs here as it runs there.

TinyLCM finds it by its entry point (`tinylcm.backends`), like a backend of any other package. So packages for boards
are tried in a child process before they are stored or sent, and `tinylcm infer` runs one without a board.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tinylcm.backends import BackendSpec, Tensor
from tinylcm.errors import ModelError

from .blob import read_model
from .interpreter import run_windows, scores_of, self_test


class BoardBackend:
    """Input `window` int16 `[1, rows, channels]`, output `scores` float32 `[1, classes]`: a `tinylcm.backends.Backend`.

    Raises:
        ModelError: the bytes are no sound model for boards, its self-test fails, or `spec` does not fit it.
    """

    stateful = False

    def __init__(self, model: bytes, spec: BackendSpec) -> None:
        self._model = read_model(model)
        self_test(self._model)
        shape = (1, self._model.rows, self._model.channels)
        if spec.state or spec.constants or (set(spec.outputs) - {"scores"}) or (set(spec.shapes) - {"", "window"}):
            raise ModelError("a model for boards takes `window` and gives `scores`, and has no state and no constants")
        for wanted in spec.shapes.values():
            if tuple(wanted) != shape:
                raise ModelError(f"input 'window' has shape {list(shape)} in the model, {list(wanted)} asked")
        self.inputs = (Tensor("window", np.zeros(shape, dtype=np.int16)),)
        self.outputs = (Tensor("scores", np.zeros((1, self._model.classes), dtype=np.float32)),)

    def run(self) -> None:
        """Compute the scores of the window."""
        self.outputs[0].array[...] = self.run_many([self.inputs[0].array])[0]

    def run_many(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute the scores of many windows."""
        return [scores_of(run_windows(self._model, inputs[0]))]

    def reset(self) -> None:
        """Nothing: it remembers nothing."""
