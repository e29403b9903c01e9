"""A board's model read a second time from docs/wire.md, one window at a time in plain Python: an oracle for the C code.

It shares nothing with firmware_bridge, and makes random models of both kinds for the tests.
"""

from __future__ import annotations

import itertools
import math
import random
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

ONE = 65535
FeatureRow = tuple[int, int, int, float, float]  # op, channel, row, offset, scale
Parts = tuple[int, int, list[FeatureRow], bytes]  # kind, classes, features, body


def f32(x: float | np.floating[Any]) -> np.float32:
    return np.float32(x)


def quantise(x: np.float32, offset: np.float32, scale: np.float32, low: int, high: int) -> int:
    """(x - offset) * scale in f32, halves away from zero, clamped; NaN is the lowest."""
    with np.errstate(all="ignore"):
        scaled = float(f32(f32(x - offset) * scale))
    if math.isnan(scaled):
        return low
    if math.isinf(scaled):
        return low if scaled < 0 else high
    away = math.floor(abs(scaled) + 0.5) if abs(scaled) < 2**40 else int(abs(scaled))
    return max(low, min(high, away if scaled > 0 else -away))


def feature(op: int, column: list[int], row: int) -> np.float32:
    n = len(column)
    if op == 0:
        return f32(column[row])
    if op == 1:
        return f32(sum(column) / n)
    if op == 2:
        spread = n * sum(x * x for x in column) - sum(column) ** 2
        return f32(np.sqrt(f32(spread / (n * n))))
    if op == 3:
        return f32(min(column))
    if op == 4:
        return f32(max(column))
    return f32(sum(abs(b - a) for a, b in itertools.pairwise(column)) / (n - 1)) if n > 1 else f32(0)


@dataclass(frozen=True)
class Told:
    """What came out: the quantised features, the class, and every class's score."""

    features: list[int]
    label: int
    scores: list[int]


class Oracle:
    """A blob that is known to be right."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        (self.kind, self.classes, self.feature_count, self.rows, self.hop, self.channels) = struct.unpack_from(
            "<BBHHHB", blob, 10
        )
        self.features_at, self.body_at, self.selftest_at = struct.unpack_from("<III", blob, 20)

    def predict(self, window: np.ndarray) -> Told:
        """A window `[rows, channels]` of counts."""
        values = []
        for i in range(self.feature_count):
            op, channel, row, offset, scale = struct.unpack_from("<BBHff", self.blob, self.features_at + 12 * i)
            x = feature(op, [int(value) for value in window[:, channel]], row)
            values.append(quantise(x, f32(offset), f32(scale), -32768, 32767))
        return self.run(values)

    def run(self, values: list[int]) -> Told:
        """Quantised features to scores."""
        label, scores = self._trees(values) if self.kind == 1 else self._network(values)
        return Told(values, label, scores)

    def _trees(self, values: list[int]) -> tuple[int, list[int]]:
        trees, _leaves, nodes = struct.unpack_from("<HHI", self.blob, self.body_at)
        firsts = struct.unpack_from(f"<{trees}I", self.blob, self.body_at + 8)
        nodes_at = self.body_at + 8 + 4 * trees
        sums = [0] * self.classes
        for first in firsts:
            at = 0
            while True:
                number, threshold, left, right = struct.unpack_from("<hhHH", self.blob, nodes_at + 8 * (first + at))
                if number == -1:
                    break
                at = left if values[number] <= threshold else right
            table = struct.unpack_from(f"<{self.classes}H", self.blob, nodes_at + 8 * nodes + 2 * self.classes * left)
            sums = [total + score for total, score in zip(sums, table, strict=True)]
        scores = [total // trees for total in sums]
        return scores.index(max(scores)), scores

    def _network(self, values: list[int]) -> tuple[int, list[int]]:
        at = self.body_at
        layers, offset, scale = struct.unpack_from("<B3xff", self.blob, at)
        at += 12
        x = [quantise(f32(value), f32(offset), f32(scale), -128, 127) for value in values]
        for _ in range(layers):
            inputs, outputs, multiplier, shift, relu, zero, zero_in = struct.unpack_from("<HHiBBbb", self.blob, at)
            bias = struct.unpack_from(f"<{outputs}i", self.blob, at + 12)
            weights = struct.unpack_from(f"<{outputs * inputs}b", self.blob, at + 12 + 4 * outputs)
            at += 12 + 4 * outputs + -(-outputs * inputs // 4) * 4
            y = []
            for o in range(outputs):
                row = weights[o * inputs : (o + 1) * inputs]
                acc = bias[o] + sum(w * (value - zero_in) for w, value in zip(row, x, strict=True))
                scaled = zero + (acc * multiplier + (1 << (shift - 1)) >> shift)
                y.append(max(zero if relu else -128, min(127, scaled)))
            x = y
        table = struct.unpack_from("<256H", self.blob, at)
        parts = [table[max(x) - value] for value in x]
        return x.index(max(x)), [part * ONE // sum(parts) for part in parts]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def assemble(
    kind: int, classes: int, features: list[FeatureRow], body: bytes, vectors: list[tuple[list[int], int, int]],
    rows: int, hop: int, channels: int,
) -> bytes:  # fmt: skip
    """A blob of its parts; a feature is op, channel, row, offset, scale."""
    described = b"".join(struct.pack("<BBHff", *each) for each in features)
    selftest = b""
    if vectors:
        selftest = struct.pack("<HH", len(vectors), 0)
        for values, label, score in vectors:
            selftest += padded(struct.pack(f"<{len(values)}h", *values)) + struct.pack("<HH", label, score)
    features_at = 36
    body_at = features_at + len(described)
    selftest_at = body_at + len(body)
    return (
        struct.pack(
            "<4sIHBBHHHBBIIII", b"TBM1", selftest_at + len(selftest), 1, kind, classes, len(features), rows, hop,
            channels, 0, features_at, body_at, selftest_at if vectors else 0, 0,
        )
        + described + body + selftest
    )  # fmt: skip


def random_features(rng: random.Random, count: int, rows: int, channels: int) -> list[FeatureRow]:
    """Features of every kind with scales that saturate now and then."""
    return [
        (
            rng.randrange(6), rng.randrange(channels), rng.randrange(rows),
            rng.uniform(-3000, 3000), 10 ** rng.uniform(-3, 1.5),
        )
        for _ in range(count)
    ]  # fmt: skip


def _tree(rng: random.Random, features: int, leaves: int, depth: int) -> list[tuple[int, int, int, int]]:
    nodes: list[tuple[int, int, int, int]] = []

    def grow(left_depth: int) -> int:
        at = len(nodes)
        nodes.append((-1, 0, rng.randrange(leaves), 0))
        if left_depth and rng.random() < 0.85:
            left, right = grow(left_depth - 1), grow(left_depth - 1)
            nodes[at] = (rng.randrange(features), rng.randrange(-20000, 20000), left, right)
        return at

    grow(depth)
    return nodes


def random_trees(seed: int, trees: int = 9, depth: int = 5, classes: int = 4, features: int = 12, rows: int = 20,
                 channels: int = 2, vectors: int = 3) -> bytes:  # fmt: skip
    """A forest that a converter could have made, with a self-test that passes."""
    rng = random.Random(seed)
    leaves = max(2, classes * 2)
    grown = [_tree(rng, features, leaves, depth) for _ in range(trees)]
    firsts = [sum(map(len, grown[:i])) for i in range(trees)]
    body = struct.pack("<HHI", trees, leaves, sum(map(len, grown))) + struct.pack(f"<{trees}I", *firsts)
    body += b"".join(struct.pack("<hhHH", *node) for nodes in grown for node in nodes)
    for _ in range(leaves):
        shares = [rng.random() for _ in range(classes)]
        body += struct.pack(f"<{classes}H", *(int(share / sum(shares) * ONE) for share in shares))
    parts: Parts = (1, classes, random_features(rng, features, rows, channels), padded(body))
    return _with_vectors(rng, parts, vectors, rows, channels)


def random_network(seed: int, widths: tuple[int, ...] = (12, 16, 5), rows: int = 20, channels: int = 2,
                   vectors: int = 3) -> bytes:  # fmt: skip
    """An int8 network with activations of both kinds and zero points anywhere."""
    rng = random.Random(seed)
    body = struct.pack("<B3xff", len(widths) - 1, rng.uniform(-100, 100), 10 ** rng.uniform(-3, -1.5))
    for inputs, outputs in itertools.pairwise(widths):
        shift = rng.randrange(20, 40)
        multiplier = max(1, int((1 << shift) * rng.uniform(0.5, 2.0) / (inputs**0.5 * 3000)))
        body += struct.pack(
            "<HHiBBbb", inputs, outputs, min(multiplier, 2**31 - 1), shift, rng.randrange(2),
            rng.randrange(-128, 60), rng.randrange(-128, 128),
        )  # fmt: skip
        body += struct.pack(f"<{outputs}i", *(rng.randrange(-100_000, 100_000) for _ in range(outputs)))
        body += padded(
            struct.pack(f"<{inputs * outputs}b", *(rng.randrange(-128, 128) for _ in range(inputs * outputs)))
        )
    body += struct.pack("<256H", *(round(ONE * math.exp(-d * 0.05)) for d in range(256)))
    parts: Parts = (2, widths[-1], random_features(rng, widths[0], rows, channels), body)
    return _with_vectors(rng, parts, vectors, rows, channels)


def _with_vectors(rng: random.Random, parts: Parts, vectors: int, rows: int, channels: int) -> bytes:
    oracle = Oracle(assemble(*parts, [], rows, rows // 2 or 1, channels))
    told = [oracle.run([rng.randrange(-32768, 32768) for _ in range(len(parts[2]))]) for _ in range(vectors)]
    tests = [(each.features, each.label, each.scores[each.label]) for each in told]
    return assemble(*parts, tests, rows, rows // 2 or 1, channels)
