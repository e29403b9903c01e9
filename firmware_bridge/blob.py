"""A board's model as bytes: what docs/wire.md calls format 1, ABI 1. Writing, reading, and every rule that it keeps.

It computes nothing (`interpreter` does) and knows no estimator (`convert` does). What `read_model` returns is safe to
run: every offset, index and child was checked, so an interpreter needs no check of its own.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tinylcm.errors import ModelError

MAGIC: Final = b"TBM1"
FORMAT: Final = 1  # MODEL_BEGIN's `format`
ABI: Final = 1
TREES: Final = 1
NETWORK: Final = 2
OPS: Final = ("value", "mean", "std", "min", "max", "mean_abs_diff")  # an op's number is its index
CLASSES_MAX: Final = 32
FEATURES_MAX: Final = 256
WIDTH_MAX: Final = 256  # inputs or outputs of a layer
LAYERS_MAX: Final = 4
VECTORS_MAX: Final = 64
BIAS_MAX: Final = 1 << 30
SHIFT_MAX: Final = 62
ONE: Final = 65_535  # a score of 1
BYTES_MAX: Final = 16 << 20
HEADER: Final = struct.Struct("<4sIHBBHHHBxIIIxxxx")
FEATURE: Final = struct.Struct("<BBHff")
NODE: Final = np.dtype([("feature", "<i2"), ("threshold", "<i2"), ("left", "<u2"), ("right", "<u2")])
_TREES: Final = struct.Struct("<HHI")
_NETWORK: Final = struct.Struct("<Bxxxff")
_LAYER: Final = struct.Struct("<HHiBBbb")
_VECTOR: Final = struct.Struct("<HH")
_TABLE: Final = 256


@dataclass(frozen=True, slots=True)
class Feature:
    """One number of a window, `op` over a channel, and how it becomes an int16."""

    op: int
    channel: int
    row: int
    offset: float
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Trees:
    """An ensemble: `first` node of each tree, all `nodes`, and a row of `leaves` `[n, classes]` for each outcome."""

    first: NDArray[np.uint32]
    nodes: NDArray[Any]
    leaves: NDArray[np.uint16]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One dense layer in integers; `weights` `[outputs, inputs]`."""

    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    multiplier: int
    shift: int
    relu: bool
    output_zero: int
    input_zero: int


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Dense layers; `offset` and `scale` take a quantised feature to the first one's int8, `table` is the softmax."""

    offset: float
    scale: float
    layers: tuple[Layer, ...]
    table: NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Vector:
    """Quantised features with the class and its score that must come out."""

    features: tuple[int, ...]
    label: int
    score: int


Body: TypeAlias = Trees | Network


@dataclass(frozen=True, slots=True, eq=False)
class BoardModel:
    """A model for boards: windows of `rows` x `channels` counts, a new one every `hop` rows, one of `classes` out."""

    rows: int
    hop: int
    channels: int
    classes: int
    features: tuple[Feature, ...]
    body: Body
    vectors: tuple[Vector, ...] = ()


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


# writing --------------------------------------------------------------------------------------------------


def write_model(model: BoardModel) -> bytes:
    """The bytes of a model; they are read back, so what a board would refuse is not written.

    Raises:
        ModelError: the model breaks a rule of the format.
    """
    try:
        features = b"".join(FEATURE.pack(f.op, f.channel, f.row, f.offset, f.scale) for f in model.features)
        body = _write_trees(model.body) if isinstance(model.body, Trees) else _write_network(model.body)
        tests = b""
        if model.vectors:
            tests = _VECTOR.pack(len(model.vectors), 0) + b"".join(
                _pad(np.array(v.features, "<i2").tobytes()) + _VECTOR.pack(v.label, v.score) for v in model.vectors
            )
        at_body = HEADER.size + len(features)
        at_tests = at_body + len(body)
        header = HEADER.pack(
            MAGIC,
            at_tests + len(tests),
            ABI,
            TREES if isinstance(model.body, Trees) else NETWORK,
            model.classes,
            len(model.features),
            model.rows,
            model.hop,
            model.channels,
            HEADER.size,
            at_body,
            at_tests if tests else 0,
        )
    except (struct.error, OverflowError) as error:
        raise ModelError(f"the board's model has a number that does not fit its place: {error}") from error
    data = b"".join((header, features, body, tests))
    read_model(data)
    return data


def _write_trees(trees: Trees) -> bytes:
    return b"".join(
        (
            _TREES.pack(len(trees.first), len(trees.leaves), len(trees.nodes)),
            trees.first.astype("<u4").tobytes(),
            trees.nodes.astype(NODE).tobytes(),
            _pad(trees.leaves.astype("<u2").tobytes()),
        )
    )


def _write_network(network: Network) -> bytes:
    parts = [_NETWORK.pack(len(network.layers), network.offset, network.scale)]
    for layer in network.layers:
        outputs, inputs = layer.weights.shape
        numbers = (layer.multiplier, layer.shift, int(layer.relu), layer.output_zero, layer.input_zero)
        parts += [
            _LAYER.pack(inputs, outputs, *numbers),
            layer.bias.astype("<i4").tobytes(),
            _pad(layer.weights.astype("<i1").tobytes()),
        ]
    return b"".join((*parts, network.table.astype("<u2").tobytes()))


# reading --------------------------------------------------------------------------------------------------


class _Reader:
    """Takes pieces from the model one after another; reading past the end is the model's fault, said with the place."""

    def __init__(self, data: bytes, offset: int, what: str) -> None:
        if offset % 4 or not HEADER.size <= offset <= len(data):
            raise _wrong(f"the {what} at offset {offset}: expected a multiple of 4 within its {len(data)} bytes")
        self._data, self._offset, self._what = data, offset, what

    def take(self, size: int) -> bytes:
        piece = self._data[self._offset : self._offset + size]
        if len(piece) < size:
            raise _wrong(f"the {self._what} ends {size - len(piece)} bytes too early")
        self._offset += size
        return piece

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size))

    def array(self, dtype: Any, count: int) -> NDArray[Any]:
        size = np.dtype(dtype).itemsize * count
        found = np.frombuffer(self.take(size), dtype=dtype, count=count)
        self.take(-size % 4)
        return found


def _wrong(problem: str) -> ModelError:
    return ModelError(f"this is no model for boards, or a damaged one: {problem}")


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise _wrong(f"{name} is {value}, expected {low} to {high}")


def read_model(data: bytes) -> BoardModel:
    """Read a model and check all that docs/wire.md asks of it; its self-test is not run here.

    Raises:
        ModelError: the first rule that it breaks.
    """
    if len(data) < HEADER.size or data[:4] != MAGIC:
        raise _wrong("it does not begin with TBM1")
    _, size, abi, kind, classes, count, rows, hop, channels, at_features, at_body, at_tests = HEADER.unpack_from(data)
    if abi != ABI:
        raise ModelError(f"the board's model has ABI {abi}, this program knows {ABI}: convert it again")
    if size != len(data) or size > BYTES_MAX:
        raise _wrong(f"it says that it has {size} bytes, it has {len(data)}, at most {BYTES_MAX} are taken")
    _within("the number of classes", classes, 2, CLASSES_MAX)
    _within("the number of features", count, 1, FEATURES_MAX)
    for name, value in (("the window's rows", rows), ("the hop", hop), ("the number of channels", channels)):
        _within(name, value, 1, ONE)
    reader = _Reader(data, at_features, "feature table")
    features = tuple(Feature(*reader.unpack(FEATURE)) for _ in range(count))
    for index, feature in enumerate(features):
        _check_feature(index, feature, rows, channels)
    reader = _Reader(data, at_body, "body")
    if kind == TREES:
        body: Body = _read_trees(reader, classes, count)
    elif kind == NETWORK:
        body = _read_network(reader, classes, count)
    else:
        raise _wrong(f"kind {kind} is not known, expected 1 (trees) or 2 (MLP)")
    vectors = _read_vectors(_Reader(data, at_tests, "self-test"), classes, count) if at_tests else ()
    return BoardModel(rows, hop, channels, classes, features, body, vectors)


def _check_feature(index: int, feature: Feature, rows: int, channels: int) -> None:
    _within(f"feature {index}: the op", feature.op, 0, len(OPS) - 1)
    _within(f"feature {index}: the channel", feature.channel, 0, channels - 1)
    _within(f"feature {index}: the row", feature.row, 0, rows - 1)
    _check_scale(f"feature {index}", feature.offset, feature.scale)


def _check_scale(what: str, offset: float, scale: float) -> None:
    if not math.isfinite(offset) or not math.isfinite(scale) or scale <= 0:
        raise _wrong(f"{what} has offset {offset} and scale {scale}, expected finite ones and a scale above 0")


def _read_trees(reader: _Reader, classes: int, features: int) -> Trees:
    trees, leaves, nodes = reader.unpack(_TREES)
    _within("the number of trees", trees, 1, ONE)
    _within("the number of leaves", leaves, 1, ONE)
    _within("the number of nodes", nodes, trees, BYTES_MAX // NODE.itemsize)
    first = reader.array("<u4", trees)
    table = reader.array(NODE, nodes)
    values = reader.array("<u2", leaves * classes).reshape(leaves, classes)
    ends = np.append(first[1:].astype(np.int64), nodes)
    if first[0] != 0 or (ends <= first).any():
        raise _wrong("the trees' first nodes do not rise from 0")
    leaf = table["feature"] == -1
    if ((table["feature"] < -1) | (table["feature"] >= features)).any():
        raise _wrong(f"a node asks for a feature that is none of the {features}")
    if (table["left"][leaf] >= leaves).any():
        raise _wrong(f"a leaf has a row that is none of the {leaves}")
    start = np.repeat(first.astype(np.int64), ends - first)
    own, length = np.arange(nodes) - start, np.repeat(ends - first, ends - first)
    for side in ("left", "right"):
        child = table[side].astype(np.int64)
        if (~leaf & ((child <= own) | (child >= length))).any():
            raise _wrong(f"a node's {side} child does not lie after it in its own tree")
    return Trees(first, table, values)


def _read_network(reader: _Reader, classes: int, features: int) -> Network:
    count, offset, scale = reader.unpack(_NETWORK)
    _within("the number of layers", count, 1, LAYERS_MAX)
    _check_scale("the network's input", offset, scale)
    layers: list[Layer] = []
    width = features
    for index in range(count):
        inputs, outputs, multiplier, shift, activation, output_zero, input_zero = reader.unpack(_LAYER)
        _within(f"layer {index}: the number of inputs", inputs, width, width)
        _within(f"layer {index}: the number of outputs", outputs, 1, WIDTH_MAX)
        _within(f"layer {index}: the multiplier", multiplier, 1, (1 << 31) - 1)
        _within(f"layer {index}: the shift", shift, 1, SHIFT_MAX)
        _within(f"layer {index}: the activation", activation, 0, 1)
        bias = reader.array("<i4", outputs)
        if (np.abs(bias.astype(np.int64)) > BIAS_MAX).any():
            raise _wrong(f"layer {index} has a bias beyond 2^30")
        weights = reader.array("<i1", outputs * inputs).reshape(outputs, inputs)
        layers.append(Layer(weights, bias, multiplier, shift, bool(activation), output_zero, input_zero))
        width = outputs
    if width != classes:
        raise _wrong(f"the last layer has {width} outputs for {classes} classes")
    table = reader.array("<u2", _TABLE)
    if not table[0]:
        raise _wrong("the softmax table begins with 0")
    return Network(offset, scale, tuple(layers), table)


def _read_vectors(reader: _Reader, classes: int, features: int) -> tuple[Vector, ...]:
    count, _ = reader.unpack(_VECTOR)
    _within("the number of self-test vectors", count, 1, VECTORS_MAX)
    vectors = []
    for _ in range(count):
        values = reader.array("<i2", features)
        label, score = reader.unpack(_VECTOR)
        _within("a self-test vector's class", label, 0, classes - 1)
        vectors.append(Vector(tuple(values.tolist()), label, score))
    return tuple(vectors)
