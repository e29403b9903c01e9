"""Small real ONNX models and packages for the tests, made on the spot."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tinylcm.keys import KeySet, PrivateKey, ReleaseKey, Signer, Trust, fingerprint
from tinylcm.manifest import Golden, InputSpec, Manifest, WindowSpec
from tinylcm.package import build_package
from tinylcm.requires import Requires
from tinylcm.types import Json

YEAR_2100 = 4_102_444_800


def linear_model(
    channels: int = 3,
    labels: int = 2,
    *,
    samples: int | None = None,
    bias: float = 0.0,
    op: str = "Softmax",
    embedding: bool = False,
) -> bytes:
    """softmax(mean over samples (x) W + b): `[1, channels]`, or `[1, samples, channels]`, to `[1, labels]`."""
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((channels, labels)).astype(np.float32)
    offsets = np.linspace(-bias, bias, labels).astype(np.float32)
    nodes, source = [], "x"
    shape = [1, channels] if samples is None else [1, samples, channels]
    if samples is not None:
        nodes.append(helper.make_node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=0))
        source = "m"
    nodes.append(helper.make_node("Gemm", [source, "w", "b"], ["z"]))
    nodes.append(helper.make_node(op, ["z"], ["scores"]))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, labels])]
        + ([helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, labels])] if embedding else []),
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(offsets, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def layers_model(*sizes: int) -> bytes:
    """Dense layers with ReLU between them and softmax behind: `[1, sizes[0], 1]` to `[1, sizes[-1]]`."""
    rng = np.random.default_rng(3)
    nodes, weights, source = [helper.make_node("Flatten", ["x"], ["a0"])], [], "a0"
    for index, (taken, given) in enumerate(pairwise(sizes), 1):
        matrix = (rng.standard_normal((taken, given)) / taken**0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [source, f"w{index}"], [f"z{index}"]))
        last = index == len(sizes) - 1
        source = "scores" if last else f"a{index}"
        nodes.append(helper.make_node("Softmax" if last else "Relu", [f"z{index}"], [source]))
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, sizes[0], 1])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, sizes[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def unknown_operator_model() -> bytes:
    """A model that no runtime knows how to run."""
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["scores"], domain="com.example")],
        "unknown",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2])],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.example", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def log_model() -> bytes:
    """log(x): NaN for negative inputs."""
    graph = helper.make_graph(
        [helper.make_node("Log", ["x"], ["scores"])],
        "log",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def make_signer(seed: int = 1, *, expires_s: int = YEAR_2100) -> Signer:
    """A publisher with keys that are the same in every run."""
    root, release = PrivateKey(bytes([seed]) * 32), PrivateKey(bytes([seed + 100]) * 32)
    return Signer(release, KeySet.sign(root, (ReleaseKey(release.public, expires_s),)))


def trust_of(signer: Signer) -> Trust:
    """Trust in that publisher alone."""
    return Trust(frozenset({fingerprint(signer.keyset.root)}))


def manifest_of(name: str = "gesture", version: str = "1.0.0", *, channels: int = 3, labels: int = 2) -> Manifest:
    """A manifest for `linear_model`."""
    return Manifest(
        name=name,
        version=version,
        format="onnx",
        input=InputSpec("x", (1, channels)),
        output="scores",
        labels=tuple(f"class-{index}" for index in range(labels)),
        window=WindowSpec(1, 1),
    )


def make_package(
    name: str = "gesture",
    version: str = "1.0.0",
    *,
    signer: Signer | None = None,
    model: bytes | None = None,
    bias: float = 0.0,
    wrong_golden: bool = False,
    security_counter: int = 0,
    requires: Requires | None = None,
    metadata: dict[str, Json] | None = None,
) -> bytes:
    """A signed package of a linear model of 3 channels and 2 labels."""
    manifest = replace(
        manifest_of(name, version),
        security_counter=security_counter,
        requires=requires or Requires(),
        metadata=metadata or {},
    )
    members = {"model.onnx": model if model is not None else linear_model(bias=bias)}
    if wrong_golden:
        manifest = replace(manifest, golden=Golden(1, 1e-4, ((0.123, 0.877),)))
        members["golden.f32"] = np.ones((1, 3), dtype="<f4").tobytes()
    return build_package(manifest, members, signer or make_signer())


def write_keys(folder: Path, signer: Signer) -> Path:
    """Pin a publisher in a device's or server's trust folder."""
    from tinylcm.keys import pin_root

    pin_root(folder, signer.keyset.root)
    return folder
