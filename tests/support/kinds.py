"""Packages of every shape that a manifest can describe, made on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from models import linear_model, make_signer, trust_of
from onnx import TensorProto, helper, numpy_helper
from tinylcm.manifest import parse_manifest
from tinylcm.package import Package, build_package, parse_package

FLOAT = TensorProto.FLOAT


def packaged(document: Mapping[str, Any], members: Mapping[str, bytes], **changes: Any) -> Package:
    """A checked package of a manifest as a person writes it."""
    signer = make_signer()
    whole = {"name": "m", "version": "1.0", "format": "onnx", "output": "scores", "labels": ["a", "b"], **document}
    data = build_package(parse_manifest({**whole, **changes}), members, signer)
    return parse_package(data, trust_of(signer))


def save(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: Mapping[str, np.ndarray]) -> bytes:
    """A checked ONNX model."""
    kept = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def value(name: str, shape: list[Any], kind: int = FLOAT) -> Any:
    """A graph's input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


def windowed(samples: int, channels: int = 1, name: str = "m", hop: int | None = None, **changes: Any) -> Package:
    """softmax of a linear map of the window's means."""
    document = {
        "name": name,
        "input": {"name": "x", "shape": [1, samples, channels]},
        "window": {"samples": samples, "hop": hop or samples, **changes.pop("window", {})},
    }
    return packaged(document, {"model.onnx": linear_model(channels, samples=samples)}, **changes)


def counter_model() -> bytes:
    """Explicit state: the sum of all inputs so far, scores [sum, -sum]."""
    nodes = [
        helper.make_node("Add", ["x", "h"], ["hn"]),
        helper.make_node("Neg", ["hn"], ["minus"]),
        helper.make_node("Concat", ["hn", "minus"], ["scores"], axis=1),
    ]
    return save(nodes, [value("x", [1, 1]), value("h", [1, 1])], [value("scores", [1, 2]), value("hn", [1, 1])], {})


def counter(**changes: Any) -> Package:
    """A model that keeps state between windows."""
    document = {"input": {"name": "x", "shape": [1, 1]}, "state": [{"input": "h", "output": "hn"}]}
    return packaged(document, {"model.onnx": counter_model()}, **changes)


def two_inputs(**changes: Any) -> Package:
    """scores [a + b, a - b] of two inputs, times a constant; a second output with the product."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["plus"]),
        helper.make_node("Sub", ["a", "b"], ["less"]),
        helper.make_node("Concat", ["plus", "less"], ["both"], axis=1),
        helper.make_node("Mul", ["both", "gain"], ["scores"]),
        helper.make_node("Mul", ["a", "b"], ["product"]),
    ]
    inputs = [value("a", [1, 1]), value("b", [1, 1]), value("gain", [])]
    model = save(nodes, inputs, [value("scores", [1, 2]), value("product", [1, 1])], {})
    document = {
        "input": {"name": "a", "shape": [1, 1]},
        "inputs": [{"name": "b", "shape": [1, 1]}],
        "constants": {"gain": 10.0},
        "outputs": ["product"],
    }
    return packaged(document, {"model.onnx": model}, **changes)


def open_batch_model(channels: int = 3) -> bytes:
    """softmax(x W) with an open batch axis."""
    weights = np.random.default_rng(3).standard_normal((channels, 2)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["scores"])]
    return save(nodes, [value("x", ["n", channels])], [value("scores", ["n", 2])], {"w": weights})


def pixels_model(height: int, width: int, kind: int = TensorProto.UINT8) -> bytes:
    """Mean of the pixels of each channel of an image, over 255."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=FLOAT),
        helper.make_node("ReduceMean", ["f"], ["m"], axes=[1, 2], keepdims=0),
        helper.make_node("Mul", ["m", "k"], ["scores"]),
    ]
    constants = {"k": np.array(1 / 255, np.float32)}
    return save(nodes, [value("x", [1, height, width, 3], kind)], [value("scores", [1, 3])], constants)
