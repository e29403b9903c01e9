"""Running a board's model on this machine, many windows at once, with the results that the board gives, bit for bit.

Packages for boards are tried with it before they travel, and a conversion is measured with it. The arithmetic is that
of docs/wire.md: integers where it says integers, float32 where it says f32, one rounding where it says once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tinylcm.errors import ModelError

from .blob import BoardModel, Feature, Network, Trees

_CHUNK: Final = 2048  # windows at a time: 256 features of 500 trees would otherwise fill the memory
_FAR: Final = 40_000.0  # beyond every int16, so that nothing overflows on the way to one

Counts = NDArray[np.int16]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """For n windows: the `labels` (class indexes) and all `scores` `[n, classes]`, where 65,535 is 1."""

    labels: NDArray[np.int64]
    scores: NDArray[np.uint16]


def _feature(column: NDArray[np.int64], feature: Feature) -> NDArray[Any]:
    """One feature of every window, its channel's counts `[n, rows]`; rounded to float32 where a division was."""
    rows = column.shape[1]
    if feature.op == 0:
        return column[:, feature.row]
    if feature.op in (3, 4):
        return np.asarray(column.min(axis=1) if feature.op == 3 else column.max(axis=1))
    if feature.op == 5:
        steps = np.abs(np.diff(column, axis=1)).sum(axis=1)
        return np.asarray(steps.astype(np.float64) / max(1, rows - 1)).astype(np.float32)
    total = column.sum(axis=1)
    if feature.op == 1:
        return np.asarray(total.astype(np.float64) / rows).astype(np.float32)
    spread = rows * (column * column).sum(axis=1) - total * total
    return np.asarray(np.sqrt((spread.astype(np.float64) / float(rows * rows)).astype(np.float32)))


def features_of(model: BoardModel, windows: Counts) -> NDArray[np.float32]:
    """The features of windows `[n, rows, channels]`, before they are quantised."""
    wide = windows.astype(np.int64)
    found = [_feature(wide[:, :, feature.channel], feature) for feature in model.features]
    return np.stack(found, axis=1).astype(np.float32)


def round_half_away(x: NDArray[np.float32], low: int, high: int) -> NDArray[np.int64]:
    """To the nearest integer, halves away from zero, within bounds; a NaN becomes the lowest."""
    x = np.clip(np.where(np.isnan(x), np.float32(low), x), np.float32(-_FAR), np.float32(_FAR))
    whole = np.trunc(x)
    away = np.where(np.abs(x - whole) >= 0.5, np.sign(x), 0)
    return np.clip((whole + away).astype(np.int64), low, high)


def quantise(model: BoardModel, features: NDArray[np.float32]) -> Counts:
    """Features `[n, features]` as the model's int16."""
    offset = np.array([feature.offset for feature in model.features], dtype=np.float32)
    scale = np.array([feature.scale for feature in model.features], dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return round_half_away((features - offset) * scale, -32_768, 32_767).astype(np.int16)


def _run_trees(trees: Trees, q: Counts) -> Outcome:
    nodes, first = trees.nodes, trees.first.astype(np.int64)[np.newaxis, :]
    feature = nodes["feature"].astype(np.int64)
    children = np.stack([nodes["right"], nodes["left"]], axis=1).astype(np.int64)
    at = np.repeat(first, len(q), axis=0)
    rows = np.arange(len(q))[:, np.newaxis]
    for _ in range(len(nodes)):  # a child lies after its parent, so no way is longer
        asked = feature[at]
        inner = asked >= 0
        if not inner.any():
            break
        left = q[rows, np.maximum(asked, 0)] <= nodes["threshold"][at]
        at = np.where(inner, first + children[at, left.astype(np.int64)], at)
    leaves = nodes["left"][at]
    scores = trees.leaves[leaves].astype(np.int64).sum(axis=1) // len(trees.first)
    return Outcome(scores.argmax(axis=1), scores.astype(np.uint16))


def _run_network(network: Network, q: Counts) -> Outcome:
    offset, scale = np.float32(network.offset), np.float32(network.scale)
    with np.errstate(over="ignore", invalid="ignore"):
        x = round_half_away((q.astype(np.float32) - offset) * scale, -128, 127)
    for layer in network.layers:
        # Exact in float64 (below 2^53), and a matrix product of floats is fast where one of integers is not.
        product = (x - layer.input_zero).astype(np.float64) @ layer.weights.T.astype(np.float64)
        acc = product.astype(np.int64) + layer.bias
        scaled = (acc * layer.multiplier + (1 << (layer.shift - 1))) >> layer.shift
        x = np.clip(scaled + layer.output_zero, layer.output_zero if layer.relu else -128, 127)
    weights = network.table[x.max(axis=1, keepdims=True) - x].astype(np.int64)
    scores = weights * 65_535 // weights.sum(axis=1, keepdims=True)
    return Outcome(x.argmax(axis=1), scores.astype(np.uint16))


def run_quantised(model: BoardModel, q: Counts) -> Outcome:
    """What comes of quantised features `[n, features]`."""
    if isinstance(model.body, Trees):
        parts = [_run_trees(model.body, q[start : start + _CHUNK]) for start in range(0, max(1, len(q)), _CHUNK)]
    else:
        parts = [_run_network(model.body, q)]
    return Outcome(np.concatenate([p.labels for p in parts]), np.concatenate([p.scores for p in parts]))


def run_windows(model: BoardModel, windows: Counts) -> Outcome:
    """What comes of windows of counts `[n, rows, channels]`."""
    return run_quantised(model, quantise(model, features_of(model, windows)))


def predict(model: BoardModel, window: Counts) -> tuple[int, int]:
    """Class and score of one window of counts `[rows, channels]`."""
    found = run_windows(model, window[np.newaxis])
    label = int(found.labels[0])
    return label, int(found.scores[0, label])


def self_test(model: BoardModel) -> int:
    """Run the model's own test vectors, as a board does before it takes a model; returns how many there are.

    Raises:
        ModelError: one came out otherwise.
    """
    if not model.vectors:
        return 0
    found = run_quantised(model, np.array([vector.features for vector in model.vectors], dtype=np.int16))
    for index, vector in enumerate(model.vectors):
        label = int(found.labels[index])
        score = int(found.scores[index, label])
        if (label, score) != (vector.label, vector.score):
            raise ModelError(
                f"the model's self-test vector {index} gives class {label} with score {score}, expected class "
                f"{vector.label} with score {vector.score}: the model was damaged or made wrong"
            )
    return len(model.vectors)


def scores_of(outcome: Outcome) -> NDArray[Any]:
    """Scores as numbers from 0 to 1, float32."""
    return (outcome.scores.astype(np.float64) / 65_535).astype(np.float32)
