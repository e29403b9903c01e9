"""ONNX Runtime, by IOBinding over arrays that are allocated once."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError

try:
    import onnxruntime
except ImportError as error:
    raise ModelError(
        'ONNX models need onnxruntime: pip install "tinymlops[onnx]" (64-bit only: there is none for 32-bit ARM)'
    ) from error


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # A thread that spins between windows costs a third of a core at sensor rates.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    return options


class OnnxBackend:
    """One ONNX Runtime session: see `Backend`.

    Raises:
        ModelError: the bytes are no model this runtime can run, or its tensors are not one float32 input and a
            float32 output of scores.
    """

    def __init__(
        self,
        model: bytes,
        *,
        output: str | None = None,
        shape: tuple[int, ...] | None = None,
        threads: int = 1,
        embedding: str | None = None,
    ) -> None:
        try:
            self._session = onnxruntime.InferenceSession(
                model, sess_options=_options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own exceptions share no base of theirs
            raise ModelError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise ModelError(f"the model has {len(inputs)} inputs ({_names(inputs)}), expected one")
        if inputs[0].type != "tensor(float)":
            raise ModelError(f"input {inputs[0].name!r} is {inputs[0].type}, expected tensor(float), that is float32")
        self.input_name: str = inputs[0].name
        self.output_name: str = self._choose_output(output)
        names = [self.output_name] if embedding is None else [self.output_name, self._choose_output(embedding)]
        self.input: NDArray[np.float32] = np.zeros(_fixed(inputs[0], shape), dtype=np.float32)
        # The first run finds the output's true shape, whatever the model declares, and warms the session up.
        try:
            tried = self._session.run(names, {self.input_name: self.input})
        except Exception as error:
            raise ModelError(
                f"the model does not run on zeros {list(self.input.shape)}: {_first_line(error)}"
            ) from error
        results = []
        for name, first in zip(names, map(np.asarray, tried), strict=True):
            if first.dtype != np.float32 or first.size == 0:
                what = "scores" if name == self.output_name else "values"
                raise ModelError(f"output {name!r} is {first.dtype} {first.shape}, expected float32 {what}")
            results.append(np.zeros(first.shape, dtype=np.float32))
        self.scores: NDArray[np.float32] = results[0].reshape(-1)
        self.embedding: NDArray[np.float32] | None = results[1].reshape(-1) if embedding is not None else None
        self._binding = self._session.io_binding()
        self._binding.bind_input(self.input_name, "cpu", 0, np.float32, self.input.shape, self.input.ctypes.data)
        for name, result in zip(names, results, strict=True):
            self._binding.bind_output(name, "cpu", 0, np.float32, result.shape, result.ctypes.data)
        self._run = self._session.run_with_iobinding

    def _choose_output(self, wanted: str | None) -> str:
        outputs = self._session.get_outputs()
        if wanted is not None:
            for output in outputs:
                if output.name == wanted:
                    return wanted
            raise ModelError(f"the model has no output {wanted!r}; it has {_names(outputs)}")
        floats = [output.name for output in outputs if output.type == "tensor(float)"]
        if len(floats) != 1:
            raise ModelError(f"the model has {len(floats)} float outputs ({_names(outputs)}); name one with `output`")
        return str(floats[0])

    def run(self) -> None:
        """Compute `scores` from `input`."""
        try:
            self._run(self._binding)
        except Exception as error:
            raise ModelError(f"ONNX Runtime failed on this window: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400]


def _names(tensors: list[onnxruntime.NodeArg]) -> str:
    return ", ".join(f"{tensor.name} {tensor.type} {tensor.shape}" for tensor in tensors)


def _fixed(tensor: onnxruntime.NodeArg, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    declared = [dim if isinstance(dim, int) and dim > 0 else None for dim in tensor.shape]
    if declared and declared[0] is None:
        declared[0] = 1
    if shape is None:
        if not declared or any(dim is None for dim in declared):
            raise ModelError(
                f"input {tensor.name!r} has the open shape {tensor.shape}; give `shape`, such as [1, 100, 6]"
            )
        return tuple(int(dim) for dim in declared if dim is not None)
    if len(shape) != len(declared) or any(
        dim is not None and dim != want for dim, want in zip(declared, shape, strict=True)
    ):
        raise ModelError(f"input {tensor.name!r} has shape {tensor.shape} in the model, {list(shape)} in the manifest")
    if math.prod(shape) < 1:
        raise ModelError(f"input shape {list(shape)} holds no value")
    return shape
