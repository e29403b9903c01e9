"""From a float model to integers: `Forest` and `Perceptron` to the bodies of a board's model.

Trees: a feature's scale is a power of two and its offset a whole count, so counts themselves lose nothing, and a
threshold is cut to the last step below it: `x <= t` decides as before for every count. Truncating thresholds of
unscaled features, as other converters do, costs accuracy without a word.

Networks: inputs, weights and activations become int8, with ranges from calibration data (Jacob et al., CVPR 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tinylcm.errors import ModelError

from .blob import BIAS_MAX, LAYERS_MAX, NODE, ONE, SHIFT_MAX, WIDTH_MAX, Feature, Layer, Network, Trees
from .originals import Dense, Floats, FloatTree, Forest, Perceptron

SCALE_MAX: Final = 32_768.0  # of a tree's feature: finer than a float32 resolves a mean of int16 counts
STEPS: Final = 65_534
INT8_STEP: Final = 256  # of a network's feature: its int16 is 256 times its int8
SCORELESS: Final = 12.0  # e^-12 is below the least score: logits so far below the largest need no range
_INT8: Final = 127
_FAR: Final = 65_536.0  # no feature of int16 counts lies beyond

Counts = NDArray[np.int16]
Column = tuple[int, int, int]  # op, channel, row


# trees ----------------------------------------------------------------------------------------------------


def tree_features(columns: Sequence[Column], forest: Forest, calibration: Floats) -> tuple[Feature, ...]:
    """Each feature's offset and scale, in counts, from the thresholds and the calibration features `[n, features]`."""
    features = []
    for index, (op, channel, row) in enumerate(columns):
        seen = np.percentile(calibration[:, index], (0.1, 99.9))
        asked = [tree.threshold[tree.feature == index] for tree in forest.trees]
        values = np.clip(np.concatenate([seen, *asked]), -_FAR, _FAR)
        low, high = float(values.min()), float(values.max())
        scale = min(2.0 ** math.floor(math.log2(STEPS / (high - low + 2))), SCALE_MAX)
        features.append(Feature(op, channel, row, float(round((low + high) / 2)), scale))
    return tuple(features)


def quantise_forest(forest: Forest, features: Sequence[Feature]) -> Trees:
    """The trees in integers; the thresholds are in counts.

    Raises:
        ModelError: a tree is no tree, or there are more nodes or leaves than the format can number.
    """
    first: list[int] = []
    nodes: list[tuple[int, int, int, int]] = []
    leaves: dict[tuple[int, ...], int] = {}
    for tree in forest.trees:
        first.append(len(nodes))
        order = _order(tree)
        places = {node: place for place, node in enumerate(order)}
        if len(order) > ONE:
            raise ModelError(f"a tree has {len(order)} nodes, at most {ONE} fit: limit max_leaf_nodes or max_depth")
        for node in order:
            index = int(tree.feature[node])
            if index < 0:
                row = tuple(np.floor(tree.value[node] * ONE + 0.5).astype(int).tolist())
                nodes.append((-1, 0, leaves.setdefault(row, len(leaves)), 0))
                continue
            if index >= len(features):
                raise ModelError(f"a tree asks for feature {index}, {len(features)} are given")
            feature = features[index]
            step = math.floor((tree.threshold[node] - feature.offset) * feature.scale)
            ways = places[int(tree.left[node])], places[int(tree.right[node])]
            nodes.append((index, max(-32_768, min(step, 32_767)), *ways))
    if len(leaves) > ONE:
        raise ModelError(f"the trees have {len(leaves)} different leaves, at most {ONE} fit: limit max_leaf_nodes")
    return Trees(np.array(first, np.uint32), np.array(nodes, NODE), np.array(list(leaves), np.uint16))


def _order(tree: FloatTree) -> list[int]:
    """The nodes from the root, parents before their children."""
    order, seen, waiting = [], set(), [0]
    while waiting:
        node = waiting.pop()
        if node in seen or not 0 <= node < len(tree.feature):
            raise ModelError("a tree of the model is none: a node has two parents, or a child that does not exist")
        seen.add(node)
        order.append(node)
        if tree.feature[node] >= 0:
            waiting += [int(tree.right[node]), int(tree.left[node])]
    return order


# networks -------------------------------------------------------------------------------------------------


def network_features(columns: Sequence[Column], calibration: Floats, keep: float) -> tuple[Feature, ...]:
    """Each feature's offset and scale, in counts: the middle `keep` percent of the calibration fill the int8."""
    features = []
    for index, (op, channel, row) in enumerate(columns):
        low, high = np.percentile(calibration[:, index], (100 - keep, keep))
        half = max(0.5, float(high - low) / 2)
        offset, scale = np.float32((low + high) / 2), np.float32(_INT8 * INT8_STEP / half)
        features.append(Feature(op, channel, row, float(offset), float(scale)))
    return tuple(features)


def quantise_network(network: Perceptron, features: Sequence[Feature], calibration: Floats, keep: float) -> Network:
    """The layers in integers.

    Args:
        network: on features in counts.
        calibration: features in counts, `[n, features]`; the activations' ranges come from them.
        keep: the percentile of an activation that its int8 still holds.

    Raises:
        ModelError: more or wider layers than the format holds.
    """
    layers = _centred(network.layers)
    if len(layers) > LAYERS_MAX or max(max(layer.weights.shape) for layer in layers) > WIDTH_MAX:
        shapes = ", ".join(f"{layer.weights.shape[1]}-{layer.weights.shape[0]}" for layer in layers)
        raise ModelError(f"the network has layers {shapes}; at most {LAYERS_MAX} of {WIDTH_MAX} fit a board")
    half = np.array([_INT8 * INT8_STEP / feature.scale for feature in features])
    offset = np.array([feature.offset for feature in features])
    x = np.clip((calibration - offset) / half * _INT8, -128, _INT8)  # what the int8 inputs stand for, unrounded
    first = layers[0]
    folded = Dense(first.weights * half / _INT8, first.bias + first.weights @ offset, first.relu)
    scale, zero = 1.0, 0
    result = []
    for index, layer in enumerate([folded, *layers[1:]]):
        y = x @ layer.weights.T + layer.bias
        last = index == len(layers) - 1
        low, high = _logit_range(y) if last else _range(y, keep, layer.relu)
        next_scale = max(high - low, 1e-6) / 255
        next_zero = int(np.clip(round(-128 - low / next_scale), -128, 127))
        result.append(_quantise_layer(layer, scale, zero, next_scale, next_zero))
        x, scale, zero = np.maximum(y, 0) if layer.relu else y, next_scale, next_zero
    table = np.floor(np.exp(-np.arange(256) * scale) * ONE + 0.5).astype(np.uint16)
    return Network(0.0, 1 / INT8_STEP, tuple(result), table)


def _centred(layers: Sequence[Dense]) -> list[Dense]:
    """A softmax does not see what all logits share: without it the largest is never below 0."""
    *before, last = layers
    return [*before, Dense(last.weights - last.weights.mean(axis=0), last.bias - last.bias.mean(), last.relu)]


def _range(y: Floats, keep: float, relu: bool) -> tuple[float, float]:
    if relu:
        return 0.0, float(np.percentile(np.maximum(y, 0).max(axis=1), keep))
    return min(0.0, float(np.percentile(y.min(axis=1), 100 - keep))), max(
        0.0, float(np.percentile(y.max(axis=1), keep))
    )


def _logit_range(y: Floats) -> tuple[float, float]:
    """Down to where scores end: what lies below the range is stored at its end."""
    top = y.max(axis=1)
    return min(0.0, max(float(y.min()), float(top.min()) - SCORELESS)), max(0.0, float(top.max()))


def _quantise_layer(layer: Dense, scale: float, zero: int, next_scale: float, next_zero: int) -> Layer:
    largest = max(float(np.abs(layer.weights).max()) / _INT8, float(np.abs(layer.bias).max()) / scale / (BIAS_MAX >> 1))
    step = max(largest, 1e-12)
    weights = np.clip(np.rint(layer.weights / step), -_INT8, _INT8).astype(np.int8)
    bias = np.rint(layer.bias / (scale * step)).astype(np.int32)
    multiplier, shift = _fixed_point(scale * step / next_scale)
    return Layer(weights, bias, multiplier, shift, layer.relu, next_zero, zero)


def _fixed_point(factor: float) -> tuple[int, int]:
    """A factor as `multiplier / 2^shift` with 31 bits."""
    mantissa, exponent = math.frexp(factor)
    multiplier, shift = round(mantissa * (1 << 31)), 31 - exponent
    while multiplier >= 1 << 31 or shift > SHIFT_MAX:
        multiplier, shift = multiplier >> 1, shift - 1
    if shift < 1 or multiplier < 1:
        raise ModelError(f"a layer scales by {factor:g}, which no board's int8 holds: scale the model's inputs")
    return multiplier, shift
