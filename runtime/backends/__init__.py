"""Model engines behind one Protocol; an engine is imported when a model of its format is opened.

Another package adds a format by an entry point of the group `tinylcm.backends`: its name is the format, its value a
function `open(model: bytes, spec: BackendSpec) -> Backend`. `examples/backend` is one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError

ENTRY_POINTS: Final = "tinylcm.backends"
BUILT_IN: Final = {
    "onnx": ("onnx", "OnnxBackend"),
    "tflite": ("tflite", "TFLiteBackend"),
    "knn": ("knn", "KNNBackend"),
    "linear": ("linear", "LinearBackend"),
    "scaler": ("linear", "ScalerBackend"),
    "pca": ("linear", "PCABackend"),
    "reference": ("reference", "ReferenceBackend"),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a model, as an array that the backend owns and binds once.

    Attributes:
        name: the tensor's name in the model.
        array: C-contiguous, with the batch axis first and 1; written or read in place.
        scale, zero_point: quantisation, real = scale * (stored - zero_point); a scale of 0 means there is none.
    """

    name: str
    array: NDArray[Any]
    scale: float = 0.0
    zero_point: int = 0


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """What a caller says about a model beside its bytes.

    Attributes:
        shapes: input shapes with the batch axis, by name, where the model leaves dimensions open. The name `""`
            stands for the first input that is neither a constant nor state.
        outputs: names of the wanted outputs, in this order; empty for all of the model's.
        state: pairs (input, output): after each run the output's values become the input's; `reset` zeroes them.
        constants: values of inputs that never change, by name: a number, or a nested list of the input's shape.
        threads: compute threads.
        spinning: let threads spin between windows: faster by microseconds, and a third of a core at sensor rates.
        arena: keep the engine's memory arena; off saves a little memory and costs time.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    state: tuple[tuple[str, str], ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    spinning: bool = False
    arena: bool = True


class Backend(Protocol):
    """One loaded model with its tensors: write the window into `inputs`, call `run`, read `outputs`.

    Attributes:
        inputs: what a window fills: constants and state are not among them. Zeros until they are written.
        outputs: what was asked for, overwritten by each `run`.
        stateful: what it gives depends on the windows before.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    stateful: bool

    def run(self) -> None:
        """Compute `outputs` from `inputs`.

        Raises:
            ModelError: the engine refused.
        """
        ...

    def run_many(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute n windows: in one call of the engine where the model's batch axis is open, one by one elsewhere.

        Args:
            inputs: one array for each of `inputs`, of its dtype, `[n, *shape without the batch axis]`.

        Returns:
            One new array for each of `outputs`, `[n, *shape without the batch axis]`.

        Raises:
            ModelError: the engine refused.
        """
        ...

    def reset(self) -> None:
        """Forget what earlier windows left in a stateful model; nothing in others."""
        ...


Opener: TypeAlias = Callable[[bytes, BackendSpec], Backend]


def run_one_by_one(backend: Backend, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """`run_many` for an engine whose batch is fixed at 1."""
    count = len(inputs[0])
    results = [np.empty((count, *tensor.array.shape[1:]), dtype=tensor.array.dtype) for tensor in backend.outputs]
    for index in range(count):
        for tensor, values in zip(backend.inputs, inputs, strict=True):
            tensor.array[0] = values[index]
        backend.run()
        for tensor, result in zip(backend.outputs, results, strict=True):
            result[index] = tensor.array[0]
    return results


def formats() -> list[str]:
    """Every format that can be named: the built-in ones, and those of installed packages."""
    return sorted({*BUILT_IN, *(point.name for point in metadata.entry_points(group=ENTRY_POINTS))})


def find_backend(format: str) -> Opener:
    """The opener of a format.

    Raises:
        ModelError: no such format, or its engine is not installed, with the extra to install.
    """
    if format in BUILT_IN:
        module, name = BUILT_IN[format]
        opener: Opener = getattr(importlib.import_module(f".{module}", __name__), name)
        return opener
    for point in metadata.entry_points(group=ENTRY_POINTS, name=format):
        try:
            loaded: Opener = point.load()
        except Exception as error:  # another package's import may raise anything
            raise ModelError(f"the backend {format!r} ({point.value}) cannot be loaded: {error}") from error
        return loaded
    raise ModelError(f"model format {format!r} is not supported here; supported: {', '.join(formats())}")


def open_backend(format: str, model: bytes, spec: BackendSpec | None = None) -> Backend:
    """Load a model.

    Args:
        format: one of `formats()`.
        model: the file's bytes.
        spec: shapes, outputs, state and threads.

    Raises:
        ModelError: the model cannot run here, with the reason and, for a missing engine, the extra to install.
    """
    return find_backend(format)(model, spec or BackendSpec())
