"""A board's model run by the letter of docs/wire.md ("A board's model"), in plain Python: the oracle of the tests.

It shares no line with `firmware_bridge`, knows no NumPy, and reads the bytes with `struct` alone. Floats are rounded to
binary32 by packing them.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence


def f32(x: float) -> float:
    """The nearest binary32."""
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return math.inf if x > 0 else -math.inf


def nearest(x: float, low: int, high: int) -> int:
    """Halves go away from zero; beyond the bounds is at them; a NaN is the lowest."""
    if x != x:
        return low
    if x >= high:
        return high
    if x <= low:
        return low
    whole = int(abs(x))
    if abs(x) - whole >= 0.5:
        whole += 1
    return max(low, min(high, whole if x > 0 else -whole))


class Oracle:
    """One model; `predict(window)` gives (class, score), a window being rows of integer counts."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        assert data[:4] == b"TBM1"
        self.size, self.abi, self.kind, self.classes = struct.unpack_from("<IHBB", data, 4)
        self.features, self.rows, self.hop, self.channels = struct.unpack_from("<HHHB", data, 12)
        self.at_features, self.at_body, self.at_tests = struct.unpack_from("<III", data, 20)
        assert self.size == len(data) and self.abi == 1

    def quantised(self, window: Sequence[Sequence[int]]) -> list[int]:
        """The features of a window, as the model's 16-bit integers."""
        result = []
        for index in range(self.features):
            op, channel, row, offset, scale = struct.unpack_from("<BBHff", self.data, self.at_features + 12 * index)
            column = [values[channel] for values in window]
            difference = f32(self._value(op, column, row) - offset)
            result.append(nearest(f32(difference * scale), -32768, 32767))
        return result

    @staticmethod
    def _value(op: int, column: list[int], row: int) -> float:
        n = len(column)
        if op == 0:
            return float(column[row])
        if op == 1:
            return f32(float(sum(column)) / float(n))
        if op == 2:
            numerator = n * sum(x * x for x in column) - sum(column) ** 2
            variance = f32(float(numerator) / float(n * n))
            return f32(math.sqrt(variance))
        if op in (3, 4):
            return float(min(column) if op == 3 else max(column))
        assert op == 5
        steps = [abs(after - before) for before, after in itertools.pairwise(column)]
        return f32(float(sum(steps)) / float(n - 1)) if n > 1 else 0.0

    def classify(self, q: Sequence[int]) -> tuple[int, int]:
        """The class of quantised features, and its score."""
        return self._trees(q) if self.kind == 1 else self._network(q)

    def predict(self, window: Sequence[Sequence[int]]) -> tuple[int, int]:
        """The class of a window, and its score."""
        return self.classify(self.quantised(window))

    def _trees(self, q: Sequence[int]) -> tuple[int, int]:
        trees, _, nodes = struct.unpack_from("<HHI", self.data, self.at_body)
        at_first = self.at_body + 8
        at_nodes = at_first + 4 * trees
        at_leaves = at_nodes + 8 * nodes
        totals = [0] * self.classes
        for tree in range(trees):
            (first,) = struct.unpack_from("<I", self.data, at_first + 4 * tree)
            here = 0
            while True:
                feature, threshold, left, right = struct.unpack_from("<hhHH", self.data, at_nodes + 8 * (first + here))
                if feature == -1:
                    break
                here = left if q[feature] <= threshold else right
            row = struct.unpack_from(f"<{self.classes}H", self.data, at_leaves + 2 * self.classes * left)
            totals = [total + value for total, value in zip(totals, row, strict=True)]
        scores = [total // trees for total in totals]
        return scores.index(max(scores)), max(scores)

    def _network(self, q: Sequence[int]) -> tuple[int, int]:
        layers, offset, scale = struct.unpack_from("<Bxxxff", self.data, self.at_body)
        x = [nearest(f32(f32(float(value) - offset) * scale), -128, 127) for value in q]
        at = self.at_body + 12
        for _ in range(layers):
            inputs, outputs, multiplier, shift, relu, out_zero, in_zero = struct.unpack_from("<HHiBBbb", self.data, at)
            bias = struct.unpack_from(f"<{outputs}i", self.data, at + 12)
            at += 12 + 4 * outputs
            weights = struct.unpack_from(f"<{outputs * inputs}b", self.data, at)
            at += (outputs * inputs + 3) // 4 * 4
            y = []
            for o in range(outputs):
                acc = bias[o] + sum(weights[o * inputs + i] * (x[i] - in_zero) for i in range(inputs))
                value = out_zero + ((acc * multiplier + (1 << (shift - 1))) >> shift)
                y.append(max(out_zero if relu else -128, min(127, value)))
            x = y
        table = struct.unpack_from("<256H", self.data, at)
        top = max(x)
        shares = [table[top - value] for value in x]
        label = x.index(top)
        return label, shares[label] * 65535 // sum(shares)
