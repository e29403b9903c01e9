"""Model engines behind one Protocol; an engine is imported when a model of its format is opened."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError


class Backend(Protocol):
    """One loaded model with its tensors: write the window into `input`, call `run`, read `scores`.

    Attributes:
        input: float32, the model's input shape with batch axis 1; contiguous, owned by the backend, bound once.
        scores: float32 `[labels]`, overwritten by each `run`.
        embedding: float32 `[d]`, a second output, overwritten by each `run`; None when none was asked for.
        input_name, output_name: the tensors' names in the model.
    """

    input: NDArray[np.float32]
    scores: NDArray[np.float32]
    embedding: NDArray[np.float32] | None
    input_name: str
    output_name: str

    def run(self) -> None:
        """Compute `scores` from `input`.

        Raises:
            ModelError: the engine refused.
        """
        ...


def open_backend(
    format: str,
    model: bytes,
    *,
    output: str | None = None,
    shape: tuple[int, ...] | None = None,
    threads: int = 1,
    embedding: str | None = None,
) -> Backend:
    """Load a model.

    Args:
        format: `onnx`.
        model: the file's bytes.
        output: the output that carries the scores; needed when the model has several float outputs.
        shape: the input's shape with the batch axis, when the model leaves dimensions open.
        threads: compute threads.
        embedding: a second output that monitors watch, such as the layer before the last.

    Raises:
        ModelError: the model cannot run here, with the reason and, for a missing engine, the extra to install.
    """
    if format == "onnx":
        from .onnx import OnnxBackend

        return OnnxBackend(model, output=output, shape=shape, threads=threads, embedding=embedding)
    raise ModelError(f"model format {format!r} is not supported; supported: onnx")
