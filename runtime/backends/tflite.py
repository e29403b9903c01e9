"""TensorFlow Lite models, by LiteRT (`ai_edge_litert`) where it is installed and by `tflite_runtime` elsewhere.

LiteRT is newer, several times faster with quantised models, and 64-bit only; `tflite_runtime` 2.14, its last version,
serves a 32-bit Pi, and needs Python 3.11 or older and numpy < 2. The environment variable TINYLCM_TFLITE, set to
`litert` or `tflite_runtime`, takes that one alone.

A TFLite model may keep state in three places: inputs and outputs that the caller carries over (`BackendSpec.state`),
variable tensors (fused recurrent layers), which the interpreter can zero, and resource variables (streaming models),
which it cannot: `reset_all_variables` leaves them, only a new interpreter starts afresh. So one is kept ready.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from . import BackendSpec, Tensor, run_one_by_one
from .tflite_file import find_state

PROVIDER_VARIABLE: Final = "TINYLCM_TFLITE"
PROVIDERS: Final = {"litert": "ai_edge_litert", "tflite_runtime": "tflite_runtime"}  # the better one first
DTYPES: Final = ("float32", "int8", "uint8", "int16", "int32", "int64", "bool")
BATCH_MAX: Final = 64  # windows in one call: the engine's memory grows with them
SPARE_DELAY_S: Final = 0.01  # after a reset, until the next spare interpreter is built
_ENGINE_ERRORS: Final = (RuntimeError, ValueError, TypeError, SystemError)  # what the two providers raise

Details: TypeAlias = dict[str, Any]  # the interpreter's description of one tensor
Interpreter: TypeAlias = Any  # neither provider has types


class TFLiteBackend:
    """One TensorFlow Lite interpreter: see `Backend`. `spinning` and `arena` mean nothing to it.

    Tensors are found by their name in the model, with or without its `:0`, or by their name in the model's signature
    when it has one alone; an output keeps the name by which it was asked for. State that is quantised starts, and
    starts again, at its zero point.

    Raises:
        ModelError: no provider is installed, the bytes are no model that it can run, or `spec` does not fit it.

    Attributes:
        provider: name and version of the engine, such as `ai_edge_litert 2.3.0`.
    """

    def __init__(self, model: bytes, spec: BackendSpec) -> None:
        resources, self._variables = find_state(model)
        self.provider, make = _find_provider()
        new = partial(make, model_content=model, num_threads=spec.threads)
        try:
            interpreter = new()
            self._layout = layout = _match(interpreter, spec)
            self._use(_allocate(interpreter, layout, 1))
        except _ENGINE_ERRORS as error:
            raise ModelError(f"{self.provider} cannot load the model: {_first_line(error)}") from error
        self.inputs = tuple(layout.fed[index] for index in layout.free)
        self._fed = [(index, tensor.array) for index, tensor in layout.fed.items()]
        results = self._warm_up()
        self.outputs = tuple(results[: layout.wanted])
        self._fetched = [(item["index"], one.array) for (_, item), one in zip(layout.asked, results, strict=True)]
        carried = zip(layout.carried, results[layout.wanted :], strict=True)
        self._state = [_pair(layout.fed[index], after) for index, after in carried]
        self.stateful = bool(resources or self._variables or self._state)
        self._open_batch = layout.open_batch and not self.stateful
        self._batch: tuple[int, Interpreter] | None = None
        self._build: Callable[[int], Interpreter] = lambda count: _allocate(new(), layout, count)
        self._spare = _Spare(partial(self._build, 1)) if resources else None
        self.reset()  # the warm-up was a window of its own

    def _use(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        self._set, self._invoke, self._get = interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor

    def _warm_up(self) -> list[Tensor]:
        """Run once on zeros: it finds the outputs' true shapes, whatever the model declares."""
        try:
            for index, array in self._fed:
                self._set(index, array)
            self._invoke()
            found = [self._get(item["index"]) for _, item in self._layout.asked]
        except _ENGINE_ERRORS as error:
            shapes = ", ".join(f"{tensor.name} {list(tensor.array.shape)}" for tensor in self.inputs)
            raise ModelError(f"the model does not run on zeros, {shapes}: {_first_line(error)}") from error
        results = []
        for (name, item), array in zip(self._layout.asked, found, strict=True):
            if array.ndim == 0 or array.shape[0] != 1 or array.size == 0:
                raise ModelError(
                    f"output {name!r} is {array.dtype} {list(array.shape)} for one window, expected the batch axis "
                    "first; name the outputs that are wanted"
                )
            results.append(_tensor(item, name, array.shape))
        return results

    def run(self) -> None:
        """Compute `outputs` from `inputs`."""
        get = self._get
        try:
            for index, array in self._fed:
                self._set(index, array)
            self._invoke()
            for index, array in self._fetched:
                found = get(index)
                if found.shape != array.shape:  # it would broadcast
                    raise ModelError(f"an output has shape {list(found.shape)} now, {list(array.shape)} on zeros")
                array[...] = found
        except _ENGINE_ERRORS as error:
            raise ModelError(f"{self.provider} failed on this window: {_first_line(error)}") from error
        for before, after in self._state:
            before.array[...] = after.array

    def run_many(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute n windows, up to `BATCH_MAX` in one call when the batch axis is open."""
        count = len(inputs[0])
        size = min(count, BATCH_MAX)
        batch = self._batched(size) if self._open_batch and size > 1 else None
        if batch is None:
            return run_one_by_one(self, inputs)
        results = [np.empty((count, *tensor.array.shape[1:]), tensor.array.dtype) for tensor in self.outputs]
        try:
            for start in range(0, count, size):
                end = min(start + size, count)
                for index, values in zip(self._layout.free, inputs, strict=True):
                    batch.set_tensor(index, _padded(values[start:end], size))
                batch.invoke()
                for result, (index, _) in zip(results, self._fetched, strict=True):
                    result[start:end] = batch.get_tensor(index)[: end - start]
        except _ENGINE_ERRORS as error:
            raise ModelError(f"{self.provider} failed on these windows: {_first_line(error)}") from error
        return results

    def _batched(self, count: int) -> Interpreter | None:
        """An interpreter of `count` windows, the last one kept; None when the model turns out to take one alone."""
        if self._batch is not None and self._batch[0] == count:
            return self._batch[1]
        self._batch = None  # before the next one takes its memory
        try:
            interpreter = self._build(count)
            for index, array in self._fed:
                many = index in self._layout.free
                interpreter.set_tensor(index, np.zeros((count, *array.shape[1:]), array.dtype) if many else array)
            interpreter.invoke()
            fits = all(
                interpreter.get_tensor(index).shape == (count, *array.shape[1:]) for index, array in self._fetched
            )
        except _ENGINE_ERRORS:
            fits = False  # a reshape with a fixed batch inside, for one
        self._open_batch = fits
        if fits:
            self._batch = (count, interpreter)
        return interpreter if fits else None

    def reset(self) -> None:
        """Forget all windows so far.

        Raises:
            ModelError: the engine could not make another interpreter: no memory.
        """
        try:
            if self._spare is not None:
                self._use(self._spare.take(self._interpreter))
            elif self._variables:
                self._interpreter.reset_all_variables()
        except _ENGINE_ERRORS as error:
            raise ModelError(f"{self.provider} cannot begin anew: {_first_line(error)}") from error
        for before, _ in self._state:
            before.array[...] = before.zero_point


class _Spare:
    """The next interpreter, kept ready, as building one takes as long as its model is large.

    It is not warmed up: a run would change its state. It is built in a thread, though the engine holds the GIL all the
    while: what is gained is the moment, after the reset and the window that waits for it. The thread stays, because
    starting one waits until it runs: milliseconds on a busy machine.
    """

    def __init__(self, build: Callable[[], Interpreter]) -> None:
        self._build = build
        self._hurry = threading.Event()
        self._builder = ThreadPoolExecutor(1, "tinylcm-tflite")
        self._next = self._builder.submit(self._renew, None)

    def take(self, used: Interpreter) -> Interpreter:
        """The spare one for a used one, which is freed in the thread that builds the next."""
        self._hurry.set()  # two resets in a row: the second takes as long as a build
        failed = self._next.exception()
        self._hurry.clear()
        taken = self._next.result() if failed is None else self._build()
        self._next = self._builder.submit(self._renew, used)
        return taken

    def _renew(self, used: Interpreter) -> Interpreter:
        self._hurry.wait(SPARE_DELAY_S)
        del used
        return self._build()


# the provider ---------------------------------------------------------------------------------------------


def _find_provider() -> tuple[str, Callable[..., Interpreter]]:
    """Name with version, and the class of the interpreter."""
    forced = os.environ.get(PROVIDER_VARIABLE, "")
    if forced and forced not in PROVIDERS:
        raise ModelError(f"{PROVIDER_VARIABLE}={forced!r}: expected {' or '.join(PROVIDERS)}")
    for package in [PROVIDERS[forced]] if forced else PROVIDERS.values():
        try:
            if package == "tflite_runtime":
                _check_numpy()
            module = importlib.import_module(f"{package}.interpreter")
        except ModuleNotFoundError as error:
            if error.name not in (package, f"{package}.interpreter"):
                raise ModelError(f"{package} is installed, but not what it needs: {error}") from error
        except (ImportError, OSError) as error:
            raise ModelError(f"{package} is installed, but cannot be loaded: {error}") from error
        else:
            version = getattr(importlib.import_module(package), "__version__", "")
            return f"{package} {version}".rstrip(), module.Interpreter
    raise ModelError(
        f'TFLite models need {PROVIDERS[forced] if forced else "an engine"}: pip install "tinymlops[tflite]" '
        '(64-bit: "tinymlops[litert]" is faster)'
    )


def _check_numpy() -> None:
    """tflite_runtime imports under numpy 2, and then fails with a SystemError at the first model."""
    if importlib.util.find_spec("tflite_runtime") is not None and int(np.__version__.split(".")[0]) >= 2:
        raise ModelError(
            f'tflite_runtime needs numpy < 2, here is numpy {np.__version__}: pip install "tinymlops[litert]", or on '
            'a 32-bit system pip install "numpy<2"'
        )


# what a spec says of a model ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layout:
    """What is fed to an interpreter and asked of it; tensors go by their index in the model.

    Attributes:
        fed: every input.
        free: those of them that a window fills.
        open_batch: the batch axis of every free input is open.
        asked: (name, description) of the outputs: first the `wanted` ones, then one for each of `carried`.
        wanted: how many.
        carried: the inputs that are state.
    """

    fed: dict[int, Tensor]
    free: tuple[int, ...]
    open_batch: bool
    asked: tuple[tuple[str, Details], ...]
    wanted: int
    carried: tuple[int, ...]


def _match(interpreter: Interpreter, spec: BackendSpec) -> _Layout:
    items, results = interpreter.get_input_details(), interpreter.get_output_details()
    by_input, by_output = _names(interpreter, items, "input"), _names(interpreter, results, "output")
    named = {_find(by_input, name, "input")["index"]: name for name in spec.shapes if name}
    shapes = {index: spec.shapes[name] for index, name in named.items()}
    constants = {_find(by_input, name, "input")["index"]: value for name, value in spec.constants.items()}
    state = {_find(by_input, before, "input")["index"]: after for before, after in spec.state}
    free = [item for item in items if item["index"] not in {*constants, *state}]
    if "" in spec.shapes and free:
        shapes.setdefault(free[0]["index"], spec.shapes[""])
    fed = {}
    for item in items:
        index = item["index"]
        fed[index] = _tensor(item, named.get(index), _shape(item, shapes.get(index)))
    for index, value in constants.items():
        _fill(fed[index], value)
    wanted = [(name, _find(by_output, name, "output")) for name in spec.outputs]
    wanted = wanted or [(str(item["name"]), item) for item in results]
    return _Layout(
        fed=fed,
        free=tuple(item["index"] for item in free),
        open_batch=bool(free) and all(item["shape_signature"].tolist()[:1] == [-1] for item in free),
        asked=(*wanted, *((after, _find(by_output, after, "output")) for after in state.values())),
        wanted=len(wanted),
        carried=tuple(state),
    )


def _allocate(interpreter: Interpreter, layout: _Layout, count: int) -> Interpreter:
    """Give an interpreter its shapes and memory, for `count` windows at a time."""
    for index, tensor in layout.fed.items():
        shape = (count, *tensor.array.shape[1:]) if index in layout.free else tensor.array.shape
        interpreter.resize_tensor_input(index, shape)
    interpreter.allocate_tensors()
    return interpreter


def _names(interpreter: Interpreter, items: Sequence[Details], side: str) -> dict[str, Details]:
    """Tensors by every name they answer to; an exact name wins over a shortened one, and over the signature's."""
    found: dict[str, Details] = {}
    try:
        runner = interpreter.get_signature_runner()  # refused unless the model has one signature alone
        signed = runner.get_input_details() if side == "input" else runner.get_output_details()
    except ValueError:
        signed = {}
    by_index = {item["index"]: item for item in items}
    found |= {name: by_index[item["index"]] for name, item in signed.items() if item["index"] in by_index}
    found |= {item["name"].removesuffix(":0"): item for item in items}
    return found | {item["name"]: item for item in items}


def _find(known: Mapping[str, Details], name: str, side: str) -> Details:
    if name in known:
        return known[name]
    items = {item["index"]: item for item in known.values()}.values()
    listed = ", ".join(f"{item['name']} {_dtype_name(item)} {item['shape_signature'].tolist()}" for item in items)
    raise ModelError(f"the model has no {side} {name!r}; it has {listed}")


def _dtype_name(item: Details) -> str:
    return str(np.dtype(item["dtype"]).name)


def _tensor(item: Details, name: str | None, shape: tuple[int, ...]) -> Tensor:
    """Zeros, with the quantisation that the model declares."""
    if _dtype_name(item) not in DTYPES:
        raise ModelError(f"{item['name']!r} is {_dtype_name(item)}, expected one of {', '.join(DTYPES)}")
    scale, zero_point = item["quantization"]
    return Tensor(name or item["name"], np.zeros(shape, dtype=item["dtype"]), float(scale), int(zero_point))


def _shape(item: Details, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of an input for one window: of a model with open dimensions, only these may be set."""
    declared: list[int] = item["shape_signature"].tolist()
    if wanted is None:
        shape = [1, *declared[1:]] if declared[:1] == [-1] else declared
        if -1 in shape:
            raise ModelError(f"input {item['name']!r} has the open shape {declared}; give `shape`, such as [1, 100, 6]")
    else:
        shape = list(wanted)
        fits = len(shape) == len(declared) and (
            -1 not in declared or all(dim in (-1, want) for dim, want in zip(declared, shape, strict=True))
        )
        if not fits:
            raise ModelError(f"input {item['name']!r} has shape {declared} in the model, {shape} in the manifest")
    if not shape or shape[0] != 1 or math.prod(shape) < 1:
        raise ModelError(
            f"input {item['name']!r} would have shape {shape}, expected one window: a batch axis of 1 first"
        )
    return tuple(shape)


def _fill(tensor: Tensor, value: Any) -> None:
    """Set an input that never changes."""
    array = tensor.array
    try:
        array[...] = np.asarray(value).reshape(array.shape) if np.ndim(value) else value
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelError(
            f"the constant {tensor.name!r} does not fit {array.dtype} {list(array.shape)}: {error}"
        ) from error


def _pair(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """A state's input and output, which must store alike."""
    kinds = [(one.array.shape, one.array.dtype, one.scale, one.zero_point) for one in (before, after)]
    if kinds[0] != kinds[1]:
        said = [f"{dtype} {list(shape)} (scale {scale:g}, zero {zero})" for shape, dtype, scale, zero in kinds]
        raise ModelError(f"state {before.name!r} is {said[0]} as an input and {said[1]} as the output {after.name!r}")
    return before, after


def _padded(values: NDArray[Any], count: int) -> NDArray[Any]:
    """Rows of zeros behind the last ones: an interpreter takes its own number of windows only."""
    if len(values) == count:
        return np.ascontiguousarray(values)
    padded = np.zeros((count, *values.shape[1:]), values.dtype)
    padded[: len(values)] = values
    return padded


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400]
