"""Several models in a row as one: a feature extractor, a scaler, a projection, a classifier."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from . import Backend, Tensor


class ChainBackend:
    """Backends in a row: see `Backend`. What one gives, the next takes.

    Args:
        stages: (name, backend), first to last. A backend's first output is what goes on.
        embedding: name of the stage whose output is wanted beside the last one's; empty for none.

    Raises:
        ModelError: a stage does not take what the one before gives.

    Attributes:
        stages: the backends, in their order.
        times_us: what each stage took in the last `run`, in microseconds, float64 `[stages]`.
    """

    def __init__(self, stages: Sequence[tuple[str, Backend]], embedding: str = "") -> None:
        self.names = tuple(name for name, _ in stages)
        self.stages = tuple(backend for _, backend in stages)
        self.inputs = self.stages[0].inputs
        self.stateful = any(backend.stateful for backend in self.stages)
        self.times_us = np.zeros(len(stages))
        self._steps = []
        for index, backend in enumerate(self.stages):
            hand = _Hand(self.names[index - 1 : index + 1], self.stages[index - 1], backend) if index else None
            self._steps.append((hand, backend.run))
        self.outputs = self.stages[-1].outputs
        if embedding:
            if embedding not in self.names:
                raise ModelError(f"the chain has no stage {embedding!r} to watch; it has {', '.join(self.names)}")
            watched = self.stages[self.names.index(embedding)].outputs[0]
            self.outputs = (*self.outputs, Tensor(embedding, watched.array, watched.scale, watched.zero_point))

    def run(self) -> None:
        """Compute every stage."""
        times, before = self.times_us, time.perf_counter_ns()
        for index, (hand, run) in enumerate(self._steps):
            if hand is not None:
                hand.over()
            run()
            now = time.perf_counter_ns()
            times[index] = (now - before) / 1000
            before = now

    def run_many(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute n windows, stage after stage."""
        given: list[list[NDArray[Any]]] = []
        values: Sequence[NDArray[Any]] = inputs
        for (hand, _), backend in zip(self._steps, self.stages, strict=True):
            if hand is not None:
                values = [hand.converted(given[-1][0])]
            given.append(backend.run_many(values))
        extra = [given[self.names.index(tensor.name)][0] for tensor in self.outputs[len(given[-1]) :]]
        return [*given[-1], *extra]

    def reset(self) -> None:
        """Reset every stage."""
        for backend in self.stages:
            backend.reset()


class _Hand:
    """From one stage's output to the next one's input: same size; dequantised and quantised where they differ."""

    def __init__(self, names: Sequence[str], before: Backend, after: Backend) -> None:
        if len(after.inputs) != 1:
            raise ModelError(f"stage {names[1]!r} has {len(after.inputs)} inputs, expected what {names[0]!r} gives")
        self._given, self._taken = before.outputs[0], after.inputs[0]
        if self._given.array.size != self._taken.array.size:
            raise ModelError(
                f"stage {names[0]!r} gives {list(self._given.array.shape)}, stage {names[1]!r} takes "
                f"{list(self._taken.array.shape)}"
            )
        self._source = self._given.array.reshape(self._taken.array.shape)
        self._same = (
            self._given.array.dtype == self._taken.array.dtype
            and self._given.scale == self._taken.scale
            and self._given.zero_point == self._taken.zero_point
        )

    def over(self) -> None:
        """Write the input of the next stage."""
        self._taken.array[...] = self._source if self._same else self.converted(self._source)

    def converted(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of the stage before as the next one stores them."""
        values = values.reshape((len(values), *self._taken.array.shape[1:]))
        if self._same:
            return values
        given, taken = self._given, self._taken
        real: NDArray[Any] = values
        if given.scale:
            real = (values.astype(np.float32) - given.zero_point) * np.float32(given.scale)
        if not taken.scale:
            return np.ascontiguousarray(real, dtype=taken.array.dtype)
        bounds = np.iinfo(taken.array.dtype)
        stored = np.rint(real / np.float32(taken.scale)) + taken.zero_point
        return np.asarray(np.clip(stored, bounds.min, bounds.max).astype(taken.array.dtype))
