"""Write tables.c of the MPS2 example: a sensor's recorded counts, a factory model, and how channels are watched.

The model is a small forest, grown here on the training windows with NumPy alone; what is played is the test recordings.
Thresholds come from the training recordings: half as much again as the largest excursion in five shuffled orders.

    python make_tables.py basic_motions.npz tables.c
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

COUNTS_PER_UNIT = 100  # as examples/board_activity takes its watch to count
ROWS, HOP, CHANNELS = 50, 10, 6
OPS = (1, 2, 3, 4, 5)  # mean, deviation, least, largest, mean difference of neighbours
TREES, DEPTH = 7, 5
SHUFFLE_SEED = 7  # examples/activity/stream.py plays the same order


@dataclass(frozen=True)
class Leaf:
    """The classes' scores where a walk ends; 65535 is 1."""

    scores: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """`feature <= threshold` goes left."""

    feature: int
    threshold: int
    left: Split | Leaf
    right: Split | Leaf


def counts(series: np.ndarray) -> np.ndarray:
    """Readings `[..., n]` as the sensor's i16 counts."""
    return np.clip(np.round(series * COUNTS_PER_UNIT), -32768, 32767).astype(np.int16)


def joined(series: np.ndarray, seed: int) -> np.ndarray:
    """Recordings `[k, channels, n]` one after another in a shuffled order: `[rows, channels]`."""
    order = np.random.default_rng(seed).permutation(len(series))
    return np.concatenate([series[index].T for index in order])


def features_of(window: np.ndarray) -> np.ndarray:
    """The features of a window `[rows, channels]` of counts, channel by channel."""
    x = window.astype(np.float64)
    table = [x.mean(0), x.std(0), x.min(0), x.max(0), np.abs(np.diff(x, axis=0)).mean(0)]
    return np.stack(table, axis=1).reshape(-1)


def quantised(features: np.ndarray, offset: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """As the board does it, in f32 and half away from zero."""
    scaled = (features.astype(np.float32) - offset) * scale
    rounded = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
    result: np.ndarray = np.clip(rounded, -32768, 32767).astype(np.int16)
    return result


def grow(x: np.ndarray, y: np.ndarray, classes: int, depth: int, rng: np.random.Generator) -> Split | Leaf:
    """A tree by Gini's index, each split from eight features drawn anew."""
    shares = np.bincount(y, minlength=classes) / len(y)
    leaf = Leaf(tuple(int(share * 65535 + 0.5) for share in shares))
    if depth == 0 or shares.max() == 1.0:
        return leaf
    best = (np.inf, 0, 0)
    for feature in rng.choice(x.shape[1], 8, replace=False):
        for low, high in pairwise(np.unique(x[:, feature])):
            threshold = (int(low) + int(high)) // 2
            left = x[:, feature] <= threshold
            cost = 0.0
            for part in (y[left], y[~left]):
                cost += len(part) * (1 - float(((np.bincount(part, minlength=classes) / len(part)) ** 2).sum()))
            best = min(best, (cost, int(feature), threshold))
    if best[0] == np.inf:
        return leaf
    left = x[:, best[1]] <= best[2]
    return Split(
        best[1],
        best[2],
        grow(x[left], y[left], classes, depth - 1, rng),
        grow(x[~left], y[~left], classes, depth - 1, rng),
    )


def flat(tree: Split | Leaf, leaves: list[tuple[int, ...]], nodes: list[bytes]) -> int:
    """Append a tree's nodes, parents first; returns the root's place."""
    at = len(nodes)
    nodes.append(b"")
    if isinstance(tree, Leaf):
        if tree.scores not in leaves:
            leaves.append(tree.scores)
        nodes[at] = struct.pack("<hhHH", -1, 0, leaves.index(tree.scores), 0)
    else:
        left, right = flat(tree.left, leaves, nodes), flat(tree.right, leaves, nodes)
        nodes[at] = struct.pack("<hhHH", tree.feature, tree.threshold, left, right)
    return at


def scores_of(trees: list[Split | Leaf], x: np.ndarray) -> list[int]:
    """Scores of a quantised feature vector, as the board adds them up."""
    reached = []
    for tree in trees:
        node = tree
        while isinstance(node, Split):
            node = node.left if x[node.feature] <= node.threshold else node.right
        reached.append(node.scores)
    return [sum(scores) // len(trees) for scores in zip(*reached, strict=True)]


def factory_model(series: np.ndarray, labels: np.ndarray) -> bytes:
    """A forest for the windows of the training recordings, in the format of docs/wire.md."""
    names = sorted(set(labels.tolist()))
    features, y = [], []
    for recording, label in zip(counts(series), labels, strict=True):
        for first in range(0, recording.shape[1] - ROWS + 1, HOP):
            features.append(features_of(recording[:, first : first + ROWS].T))
            y.append(names.index(label))
    table = np.array(features)
    offset = table.mean(0).astype(np.float32)
    scale = (16000 / np.abs(table - offset).max(0)).astype(np.float32)
    x, target = quantised(table, offset, scale), np.array(y)
    rng = np.random.default_rng(SHUFFLE_SEED)
    trees: list[Split | Leaf] = []
    leaves: list[tuple[int, ...]] = []
    bodies: list[list[bytes]] = []
    firsts: list[int] = []
    for _ in range(TREES):
        chosen = rng.integers(0, len(x), len(x))
        trees.append(grow(x[chosen], target[chosen], len(names), DEPTH, rng))
        nodes: list[bytes] = []
        flat(trees[-1], leaves, nodes)
        firsts.append(sum(len(body) for body in bodies))
        bodies.append(nodes)
    described = b"".join(
        struct.pack("<BBHff", OPS[i % len(OPS)], i // len(OPS), 0, offset[i], scale[i]) for i in range(len(offset))
    )
    body = struct.pack("<HHI", TREES, len(leaves), sum(len(nodes) for nodes in bodies))
    body += struct.pack(f"<{TREES}I", *firsts) + b"".join(node for nodes in bodies for node in nodes)
    body += b"".join(struct.pack(f"<{len(names)}H", *row) for row in leaves)
    body += bytes(-len(body) % 4)
    vectors = [x[index] for index in (0, 60, 120, 180)]
    selftest = struct.pack("<HH", len(vectors), 0)
    for vector in vectors:
        scores = scores_of(trees, vector)
        packed = vector.astype("<i2").tobytes()
        selftest += packed + bytes(-len(packed) % 4) + struct.pack("<HH", scores.index(max(scores)), max(scores))
    places = (36, 36 + len(described), 36 + len(described) + len(body))
    head = struct.pack(
        "<4sIHBBHHHBBIIII", b"TBM1", places[2] + len(selftest), 1, 1, len(names), len(offset), ROWS, HOP, CHANNELS, 0,
        *places, 0,
    )  # fmt: skip
    return head + described + body + selftest


def excursion(x: np.ndarray, delta: float) -> float:
    """The largest value of either side of a Page-Hinkley test over a recording."""
    deviation = x - np.cumsum(x) / np.arange(1, len(x) + 1)
    worst = 0.0
    for sign in (1.0, -1.0):
        path = np.cumsum(sign * deviation - delta)
        worst = max(worst, float((path - np.minimum.accumulate(np.minimum(path, 0.0))).max()))
    return worst


def watches(series: np.ndarray) -> str:
    """A tb_watch for each channel, from the training recordings."""
    orders = [joined(counts(series), seed) / COUNTS_PER_UNIT for seed in range(5)]
    lines, edges = [], []
    for channel in range(CHANNELS):
        x = orders[0][:, channel]
        delta = 0.1 * float(x.std())
        threshold = 1.5 * max(excursion(order[:, channel], delta) for order in orders)
        bounds = np.round(np.quantile(x, np.arange(1, 16) / 16) * 65536).astype(np.int64)
        bounds = np.maximum.accumulate(bounds + np.arange(15))  # rising, also where values repeat
        edges.append(f"static const int32_t EDGES_{channel}[TB_EDGES] = {{ {', '.join(map(str, bounds))} }};")
        lines.append(f"  {{ {round(delta * 65536)}, {round(threshold * 65536)}, 500, 8, EDGES_{channel} }},")
    return "\n".join([*edges, "const tb_watch WATCHES[CHANNELS] = {", *lines, "};"])


def main() -> None:
    """Read the recordings and write the tables."""
    with np.load(sys.argv[1], allow_pickle=False) as data:
        rows = joined(counts(data["x_test"]), SHUFFLE_SEED)
        model = factory_model(data["x_train"], data["y_train"])
        watched = watches(data["x_train"])
    text = [
        "/* Written by make_tables.py. */",
        '#include "tables.h"',
        f"const uint32_t TABLE_ROWS = {len(rows)};",
        "const int16_t TABLE_VALUES[][CHANNELS] = {",
        *(f"  {{ {', '.join(map(str, row))} }}," for row in rows.tolist()),
        "};",
        f"const uint32_t FACTORY_MODEL_SIZE = {len(model)};",
        "const uint8_t FACTORY_MODEL[] = {",
        *("  " + ", ".join(map(str, model[at : at + 24])) + "," for at in range(0, len(model), 24)),
        "};",
        watched,
    ]
    Path(sys.argv[2]).write_text("\n".join(text) + "\n")
    print(f"{sys.argv[2]}: {len(rows)} rows, a factory model of {len(model)} bytes")


if __name__ == "__main__":
    main()
