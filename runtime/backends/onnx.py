"""ONNX Runtime, by IOBinding over arrays that are allocated once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .._ext.engine import BoundCall
from ..errors import ModelError
from . import BackendSpec, Tensor, run_one_by_one

try:
    import onnxruntime
except ImportError as error:
    raise ModelError(
        'ONNX models need onnxruntime: pip install "tinymlops[onnx]" (64-bit only: there is none for 32-bit ARM)'
    ) from error

_DTYPES: Final = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


def _options(spec: BackendSpec) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # A thread that spins between windows costs a third of a core at sensor rates.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spec.spinning else "0")
    options.enable_cpu_mem_arena = spec.arena
    options.log_severity_level = 4
    return options


class OnnxBackend:
    """One ONNX Runtime session: see `Backend`.

    Raises:
        ModelError: the bytes are no model this runtime can run, or `spec` does not fit it.
    """

    def __init__(self, model: bytes, spec: BackendSpec) -> None:
        try:
            self._session = onnxruntime.InferenceSession(
                model, sess_options=_options(spec), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own exceptions share no base of theirs
            raise ModelError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error
        nodes = {node.name: node for node in self._session.get_inputs()}
        carried = dict(spec.state)
        fixed = {*carried, *spec.constants}
        if unknown := (fixed | set(spec.shapes)) - set(nodes) - {""}:
            wrong = ", ".join(map(repr, sorted(unknown)))
            raise ModelError(f"the model has no input {wrong}; it has {_names(nodes.values())}")
        first = next((name for name in nodes if name not in fixed), "")
        arrays = {}
        for name, node in nodes.items():
            shape = spec.shapes.get(name, spec.shapes.get("") if name == first else None)
            arrays[name] = np.zeros(_fixed(node, shape), dtype=_dtype(node))
        for name, value in spec.constants.items():
            _fill(name, arrays[name], value)
        self.inputs = tuple(Tensor(name, array) for name, array in arrays.items() if name not in fixed)
        self._open_batch = not carried and all(_open_first(nodes[tensor.name]) for tensor in self.inputs)
        self._constants = {name: arrays[name] for name in spec.constants}
        wanted = [self._output(name) for name in spec.outputs] or self._numeric_outputs()
        names = list(dict.fromkeys([*wanted, *(self._output(given) for given in carried.values())]))
        results = self._try(names, arrays)
        self.outputs = tuple(Tensor(name, results[name]) for name in wanted)
        self._state = [(arrays[taken], results[given]) for taken, given in carried.items()]
        for (before, after), taken in zip(self._state, carried, strict=True):
            if (before.shape, before.dtype) != (after.shape, after.dtype):
                raise ModelError(
                    f"state {taken!r} is {before.dtype} {list(before.shape)} as an input and {after.dtype} "
                    f"{list(after.shape)} as the output {carried[taken]!r}"
                )
        self.stateful = bool(self._state)
        self._arrays = [*arrays.values(), *results.values()]  # ONNX Runtime holds their addresses alone
        self._binding = self._session.io_binding()
        for name, array in arrays.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in results.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._compute = _call_of(self._session, self._binding)

    def _output(self, wanted: str) -> str:
        outputs = self._session.get_outputs()
        for output in outputs:
            if output.name == wanted:
                return wanted
        raise ModelError(f"the model has no output {wanted!r}; it has {_names(outputs)}")

    def _numeric_outputs(self) -> list[str]:
        """All outputs that are arrays of numbers: converters add labels as strings and maps."""
        outputs = self._session.get_outputs()
        names = [str(output.name) for output in outputs if output.type in _DTYPES]
        if not names:
            raise ModelError(f"the model has no output of numbers ({_names(outputs)})")
        return names

    def _try(self, names: list[str], arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once on zeros: it finds the outputs' true shapes, whatever the model declares, and warms up."""
        try:
            tried = self._session.run(names, arrays)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise ModelError(f"the model does not run on zeros, {shapes}: {_first_line(error)}") from error
        results = {}
        for name, first in zip(names, map(np.asarray, tried), strict=True):
            if first.dtype.kind not in "fiub" or first.size == 0 or first.ndim == 0 or first.shape[0] != 1:
                raise ModelError(
                    f"output {name!r} is {first.dtype} {list(first.shape)} for one window, expected numbers with the "
                    "batch axis first"
                )
            results[name] = np.zeros(first.shape, dtype=first.dtype)
        return results

    @property
    def run(self) -> Callable[[], None]:
        """Compute `outputs` from `inputs`."""
        return self._carry if self.stateful else self._compute

    def _carry(self) -> None:
        self._compute()
        for before, after in self._state:
            before[...] = after

    def run_many(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute n windows, in one call when the batch axis is open."""
        if not self._open_batch:
            return run_one_by_one(self, inputs)
        feed = {tensor.name: values for tensor, values in zip(self.inputs, inputs, strict=True)}
        try:
            found = self._session.run([tensor.name for tensor in self.outputs], {**feed, **self._constants})
        except Exception as error:
            raise ModelError(f"ONNX Runtime failed on these windows: {_first_line(error)}") from error
        results = [np.asarray(result) for result in found]
        if any(result.shape[:1] != (len(inputs[0]),) for result in results):
            self._open_batch = False  # it says so, and does not keep it
            return run_one_by_one(self, inputs)
        return results

    def reset(self) -> None:
        """Zero the state."""
        for before, _ in self._state:
            before[...] = 0


def _call_of(session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding) -> BoundCall:
    """The engine's own call. `InferenceSession.run_with_iobinding` asks before it, in Python and at every window, about
    the capture of WebGPU graphs, which takes a tenth of a small model's time; the processor's provider has none.
    """
    try:
        return BoundCall(session._sess.run_with_iobinding, (binding._iobinding, None), _failed)
    except AttributeError:  # no part of its documented interface, though it has been there in every version so far
        return BoundCall(session.run_with_iobinding, (binding,), _failed)


def _failed(error: Exception) -> ModelError:
    return ModelError(f"ONNX Runtime failed on this window: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400]


def _names(nodes: Any) -> str:
    return ", ".join(f"{node.name} {node.type} {node.shape}" for node in nodes)


def _dtype(node: onnxruntime.NodeArg) -> Any:
    if node.type not in _DTYPES:
        raise ModelError(f"input {node.name!r} is {node.type}, expected one of {', '.join(_DTYPES)}")
    return _DTYPES[node.type]


def _open_first(node: onnxruntime.NodeArg) -> bool:
    return bool(node.shape) and not (isinstance(node.shape[0], int) and node.shape[0] > 0)


def _fill(name: str, array: NDArray[Any], value: Any) -> None:
    """Set an input that never changes."""
    try:
        array[...] = np.asarray(value).reshape(array.shape) if np.ndim(value) else value
    except (ValueError, TypeError) as error:
        raise ModelError(f"the constant {name!r} does not fit {array.dtype} {list(array.shape)}: {error}") from error


def _fixed(node: onnxruntime.NodeArg, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    declared = [dim if isinstance(dim, int) and dim > 0 else None for dim in node.shape]
    if declared and declared[0] is None:
        declared[0] = 1
    if shape is None:
        if any(dim is None for dim in declared):
            raise ModelError(f"input {node.name!r} has the open shape {node.shape}; give `shape`, such as [1, 100, 6]")
        return tuple(int(dim) for dim in declared if dim is not None)
    if len(shape) != len(declared) or any(
        dim is not None and dim != want for dim, want in zip(declared, shape, strict=True)
    ):
        raise ModelError(f"input {node.name!r} has shape {node.shape} in the model, {list(shape)} in the manifest")
    if math.prod(shape) < 1:
        raise ModelError(f"input shape {list(shape)} holds no value")
    return shape
