"""What the contract of `tinylcm.backends.Backend` is tried with: a case for each kind of model of each backend, made
without any engine until it is opened, and the means to play windows through it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import tflite_models
from numpy.typing import NDArray
from tinylcm.backends import Backend, BackendSpec, open_backend
from tinylcm.errors import ModelError

Arrays = list[NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """A model, and what it must give.

    Attributes:
        model: makes its bytes.
        oracle: windows `[n, ...]` of each input, in their order, to `[n, ...]` of each output.
        needs: modules without which it cannot run.
        wrong_shapes: shapes of the first input that cannot be.
        quanta: how far an integer output may be from the oracle's.
    """

    format: str
    model: Callable[[], bytes]
    oracle: Callable[[Arrays], Arrays]
    spec: BackendSpec = field(default_factory=BackendSpec)
    needs: tuple[str, ...] = ()
    wrong_shapes: tuple[tuple[int, ...], ...] = ((2, 3), (1, 4), (1, 3, 3), (3,), ())
    quanta: int = 0

    def open(self, **changes: Any) -> Backend:
        return open_backend(self.format, self.model(), replace(self.spec, **changes))


# models and oracles ---------------------------------------------------------------------------------------


def weights() -> NDArray[np.float64]:
    return np.random.default_rng(5).standard_normal((2, 3)).astype(np.float32).astype(np.float64)


def onnx_linear() -> bytes:
    from models import linear_model

    return linear_model(embedding=True)


def onnx_linear_oracle(inputs: Arrays) -> Arrays:
    z, scores = tflite_models.fc_float(inputs)
    return [scores, z]


def onnx_model(nodes: Sequence[tuple[str, list[str], list[str]]], inputs: str, outputs: str, shape: list[Any]) -> bytes:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs.split()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs.split()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def onnx_two() -> bytes:
    nodes = [("Add", ["a", "b"], ["sum"]), ("Sub", ["a", "b"], ["difference"])]
    return onnx_model(nodes, "a b", "sum difference", ["n", 4])


def onnx_sum() -> bytes:
    return onnx_model([("Add", ["x", "state"], ["total"])], "x state", "total", [1, 2])


def knn_model() -> bytes:
    from tinylcm.backends.knn import knn_arrays

    rng = np.random.default_rng(6)
    return knn_arrays(rng.standard_normal((40, 3)).astype(np.float32), rng.integers(0, 2, 40), k=3)


def knn_oracle(inputs: Arrays) -> Arrays:
    rng = np.random.default_rng(6)
    vectors, labels = rng.standard_normal((40, 3)).astype(np.float32), rng.integers(0, 2, 40)
    distances = np.linalg.norm(inputs[0][:, np.newaxis].astype(np.float64) - vectors, axis=2)
    nearest = np.argsort(distances, axis=1)[:, :3]
    ones = labels[nearest].mean(axis=1)
    return [np.stack([1 - ones, ones], axis=1), np.take_along_axis(distances, nearest, 1).mean(axis=1, keepdims=True)]


def linear_model() -> bytes:
    from tinylcm.backends.linear import linear_arrays

    return linear_arrays(weights(), [0.5, -0.5])


def reference_model() -> bytes:
    from tinylcm.backends.reference import reference_arrays

    return reference_arrays([(weights(), [0.5, -0.5])])


def linear_oracle(inputs: Arrays) -> Arrays:
    z = inputs[0] @ weights().T + [0.5, -0.5]
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return [powers / powers.sum(axis=1, keepdims=True)]


def scaler_model() -> bytes:
    from tinylcm.backends.linear import scaler_arrays

    return scaler_arrays([1, 2, 3], [0.5, 1, 2])


def pca_model() -> bytes:
    from tinylcm.backends.linear import pca_arrays

    return pca_arrays([1, 2, 3], weights(), [0.25, 4])


def plus_minus_2(inputs: Arrays) -> Arrays:
    return [inputs[0] + 2, inputs[0] - 2]


def threshold_oracle(inputs: Arrays) -> Arrays:
    high = inputs[0][:, 2] > 0.25
    return [np.stack([~high, high], axis=1).astype(np.float32)]


def tflite(name: str, oracle: Callable[[Arrays], Arrays], **changes: Any) -> Case:
    return Case("tflite", lambda: tflite_models.load(name), oracle, needs=("tflite",), **changes)


ONNX = ("onnxruntime", "onnx")
FOUR = ((2, 4), (4,), (1, 4, 4), ())
CARRIED = (("state", "total"),)
CASES = {
    "onnx-linear": Case("onnx", onnx_linear, onnx_linear_oracle, needs=ONNX),
    "onnx-two": Case("onnx", onnx_two, tflite_models.two_by_two, needs=ONNX, wrong_shapes=FOUR),
    "onnx-state": Case("onnx", onnx_sum, tflite_models.running_sum, BackendSpec(state=CARRIED), ONNX),
    "onnx-constant": Case(
        "onnx", onnx_two, plus_minus_2, BackendSpec(constants={"b": [[2, 2, 2, 2]]}), ONNX, wrong_shapes=FOUR
    ),
    "tflite-float": tflite("fc_float", tflite_models.fc_float),
    "tflite-int8": tflite("fc_int8", tflite_models.fc_int8, quanta=1),
    "tflite-two": tflite("two_by_two", tflite_models.two_by_two, wrong_shapes=FOUR),
    "tflite-image": tflite("image_uint8", tflite_models.image_uint8, quanta=1, wrong_shapes=((2, 8, 8, 3), (8, 8, 3))),
    "tflite-resource": tflite("counter", tflite_models.running_sum, wrong_shapes=((2, 2), (2,))),
    "tflite-variable": tflite("recurrent", tflite_models.running_sum, wrong_shapes=((1, 1, 3), (2,))),
    "tflite-state": tflite("carried", tflite_models.carried, spec=BackendSpec(state=CARRIED)),
    "tflite-fixed": tflite("fixed_inside", lambda x: x),
    "tflite-length": tflite(
        "open_length",
        lambda x: [2 * x[0]],
        spec=BackendSpec(shapes={"": (1, 5, 2)}),
        wrong_shapes=((1, 5, 3), (1, 10), (2, 5, 2), (1, 0, 2)),
    ),
    "tflite-constant": tflite("two_by_two", plus_minus_2, spec=BackendSpec(constants={"b": 2}), wrong_shapes=FOUR),
    "knn": Case("knn", knn_model, knn_oracle, BackendSpec(outputs=("scores", "distance"))),
    "linear": Case("linear", linear_model, linear_oracle),
    "reference": Case("reference", reference_model, linear_oracle),
    "scaler": Case("scaler", scaler_model, lambda x: [(x[0] - [1, 2, 3]) / [0.5, 1, 2]]),
    "pca": Case("pca", pca_model, lambda x: [(x[0] - [1, 2, 3]) @ weights().T / [0.5, 2]]),
    "plug-in": Case(
        "threshold",
        lambda: b'{"channel": 2, "threshold": 0.25, "labels": 2}',
        threshold_oracle,
        needs=("plug-in",),
        wrong_shapes=((2, 3), (1, 2), (3,), ()),
    ),
}
STATEFUL = {name for name in CASES if name.endswith(("state", "resource", "variable"))}


# playing --------------------------------------------------------------------------------------------------


def require(needs: Sequence[str]) -> None:
    """Skip where a case's engine is not installed; fail where a TFLite provider was asked for."""
    if "tflite" in needs:
        found = importlib.util.find_spec("ai_edge_litert") or importlib.util.find_spec("tflite_runtime")
        if found is None and not os.environ.get("TINYLCM_TFLITE"):
            pytest.skip("no TFLite engine is installed")
    for module in needs:
        if module not in ("tflite", "plug-in"):
            pytest.importorskip(module)


def windows(backend: Backend, count: int, seed: int = 1) -> Arrays:
    """Values for every input, `[count, ...]`."""
    rng = np.random.default_rng(seed)
    result = []
    for tensor in backend.inputs:
        shape, dtype = (count, *tensor.array.shape[1:]), tensor.array.dtype
        if dtype.kind in "iu":
            result.append(rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True))
        else:
            result.append(rng.standard_normal(shape).astype(dtype))
    return result


def play(backend: Backend, inputs: Arrays) -> Arrays:
    """Run windows one after another by hand."""
    results = [np.empty((len(inputs[0]), *tensor.array.shape[1:]), tensor.array.dtype) for tensor in backend.outputs]
    for index in range(len(inputs[0])):
        for tensor, values in zip(backend.inputs, inputs, strict=True):
            tensor.array[0] = values[index]
        backend.run()
        for tensor, result in zip(backend.outputs, results, strict=True):
            result[index] = tensor.array[0]
    return results


def assert_close(found: Arrays, expected: Arrays, quanta: int) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        tolerance = quanta if one.dtype.kind in "iu" else 1e-5
        np.testing.assert_allclose(one.astype(np.float64), other.astype(np.float64), rtol=1e-5, atol=tolerance)


def equal(found: Arrays, expected: Arrays) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def fail_on_one_window(backend: Backend, good: float) -> None:
    """A model that looks up rows of a table of four fails on an index beyond, in one line, and runs the next window."""
    backend.inputs[0].array[...] = [[1, 99]]
    with pytest.raises(ModelError, match="failed on this window") as refused:
        backend.run()
    assert "\n" not in str(refused.value)
    backend.inputs[0].array[...] = [[1, 3]]
    backend.run()
    assert backend.outputs[0].array.tolist() == [[good, good + 20]]


def run_child(code: str, **environment: str) -> str:
    """Run code in a Python of its own; its standard output."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def refused_without(*packages: str, format: str) -> str:
    """Code that prints why a model cannot be opened where these packages are missing."""
    model = tflite_models.load("fc_int8")
    return f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from tinylcm.backends import open_backend
from tinylcm.backends.tflite_file import find_state
from tinylcm.errors import ModelError
try:
    open_backend({format!r}, {model!r})
except ModelError as error:
    print(error)
"""
