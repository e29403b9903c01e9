"""What summaries say of a quantity, and its sums: count, moments and a DDSketch, which add up in any order.

The moments follow Chan, Golub and LeVeque (1983), the sketch Masson, Rim and Lee, "DDSketch: a fast and
fully-mergeable quantile sketch with relative-error guarantees" (VLDB 2019). Pure: no database in here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from tinylcm.checks import INTEGER_MAX, Fields

BUCKETS_READ_MAX: Final = 4096
BUCKETS_KEPT_MAX: Final = 2048
_EXPONENT_MAX: Final = 700.0
_INDEX_MAX: Final = 1 << 20


class Distribution(msgspec.Struct, array_like=True):
    """Values that were counted; what a device did not tell is None.

    Attributes:
        accuracy: relative error of the sketch's quantiles.
        zeros: values of the sketch that were 0 or less.
        buckets: bucket i counts what is in (gamma^(i-1), gamma^i], with gamma = (1 + accuracy) / (1 - accuracy).
    """

    count: int = 0
    mean: float | None = None
    m2: float | None = None
    min: float | None = None
    max: float | None = None
    accuracy: float = 0.01
    zeros: int = 0
    buckets: dict[int, int] = {}

    def add(self, other: Distribution) -> None:
        """Count what the other has counted. Sketches of two accuracies become one of the coarser of the two.

        Of a quantity whose values lie so far apart that the sketch would need more than `BUCKETS_KEPT_MAX` buckets the
        lowest are counted together, as the paper has it: the upper quantiles keep their accuracy.
        """
        self._add_moments(other)
        mine, theirs = self.buckets, other.buckets
        if not theirs and not other.zeros:
            return
        if not mine and not self.zeros:
            self.accuracy, mine = other.accuracy, {}
        elif self.accuracy < other.accuracy:
            mine = _coarser(mine, self.accuracy, other.accuracy)
            self.accuracy = other.accuracy
        elif self.accuracy > other.accuracy:
            theirs = _coarser(theirs, other.accuracy, self.accuracy)
        self.zeros = min(self.zeros + other.zeros, INTEGER_MAX)
        if not mine:
            self.buckets = dict(theirs)
            return
        sums = dict(mine)
        if sum(mine.values()) + sum(theirs.values()) <= INTEGER_MAX:
            for index, count in theirs.items():
                sums[index] = sums.get(index, 0) + count
        else:
            for index, count in theirs.items():
                sums[index] = min(sums.get(index, 0) + count, INTEGER_MAX)
        self.buckets = _collapsed(sums)

    def _add_moments(self, other: Distribution) -> None:
        if not other.count:
            return
        if not self.count:
            self.count, self.mean, self.m2 = other.count, other.mean, other.m2
            self.min, self.max = other.min, other.max
            return
        total = self.count + other.count
        mean = m2 = None
        if self.mean is not None and other.mean is not None:
            distance, share = other.mean - self.mean, other.count / total
            mean = self.mean + distance * share
            if self.m2 is not None and other.m2 is not None:
                m2 = self.m2 + other.m2 + distance * distance * share * self.count
        self.mean, self.m2 = _finite(mean), _finite(m2)
        self.min = None if self.min is None or other.min is None else min(self.min, other.min)
        self.max = None if self.max is None or other.max is None else max(self.max, other.max)
        self.count = min(total, INTEGER_MAX)

    @property
    def std(self) -> float | None:
        """Standard deviation of the sample, or None with fewer than two values."""
        return None if self.m2 is None or self.count < 2 else math.sqrt(max(self.m2, 0.0) / (self.count - 1))

    def quantile(self, q: float) -> float | None:
        """A value within the relative accuracy of the true quantile, or None when nothing was counted."""
        return quantile(self.buckets, self.accuracy, self.zeros, q)

    def quantiles(self, qs: Sequence[float]) -> list[float | None]:
        """Several of them, from the lowest to the highest."""
        return quantiles(self.buckets, self.accuracy, self.zeros, qs)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _coarser(buckets: Mapping[int, int], accuracy: float, to: float) -> dict[int, int]:
    """Each bucket's middle, counted in the buckets of another accuracy."""
    ratio = _log_gamma(accuracy) / _log_gamma(to)
    found: dict[int, int] = {}
    for index, count in buckets.items():
        other = math.ceil((index - 0.5) * ratio)
        found[other] = min(found.get(other, 0) + count, INTEGER_MAX)
    return found


def _collapsed(buckets: dict[int, int]) -> dict[int, int]:
    if len(buckets) <= BUCKETS_KEPT_MAX:
        return buckets
    order = sorted(buckets)
    lowest, kept = order[:-BUCKETS_KEPT_MAX], order[-BUCKETS_KEPT_MAX:]
    found = {index: buckets[index] for index in kept}
    found[kept[0]] = min(found[kept[0]] + sum(buckets[index] for index in lowest), INTEGER_MAX)
    return found


def _log_gamma(accuracy: float) -> float:
    return math.log((1.0 + accuracy) / (1.0 - accuracy))


def quantile(buckets: Mapping[int, int], accuracy: float, zeros: int, q: float) -> float | None:
    """A quantile of a DDSketch.

    Returns:
        A value within the relative accuracy of the true one, or None when nothing was counted.
    """
    return quantiles(buckets, accuracy, zeros, (q,))[0]


def quantiles(buckets: Mapping[int, int], accuracy: float, zeros: int, qs: Sequence[float]) -> list[float | None]:
    """Several quantiles of a DDSketch, from the lowest to the highest."""
    total = zeros + sum(buckets.values())
    if total == 0:
        return [None] * len(qs)
    found: list[float | None] = []
    order, seen, index, gamma = iter(sorted(buckets)), zeros, 0, (1.0 + accuracy) / (1.0 - accuracy)
    for q in qs:
        rank = q * (total - 1)
        if rank < zeros:
            found.append(0.0)
            continue
        while rank >= seen and (following := next(order, None)) is not None:
            index = following
            seen += buckets[index]
        found.append(2.0 * math.exp(min(index * math.log(gamma), _EXPONENT_MAX)) / (gamma + 1.0))
    return found


def read(fields: Fields) -> Distribution:
    """A statistic of a summary record.

    Raises:
        WireError: a field is missing or malformed.
    """
    sketch = fields.table("sketch")
    accuracy = sketch.number("accuracy", low=1e-6, high=0.5)
    buckets: dict[int, int] = {}
    for number, item in enumerate(sketch.items("buckets", length_max=BUCKETS_READ_MAX)):
        if type(item) is not list or len(item) != 2 or type(item[0]) is not int or type(item[1]) is not int:
            raise sketch.fail(f"buckets[{number}]", "expected [index, count]")
        index, count = item
        if not -_INDEX_MAX <= index <= _INDEX_MAX or not 0 <= count <= INTEGER_MAX:
            raise sketch.fail(f"buckets[{number}]", "is out of range")
        buckets[index] = min(buckets.get(index, 0) + count, INTEGER_MAX)
    count = fields.natural("count")
    mean, m2, low, high = (
        fields.number(key) if count and fields.value.get(key) is not None else None
        for key in ("mean", "m2", "min", "max")
    )
    return Distribution(count, mean, m2, low, high, accuracy, sketch.natural("zeros", 0), buckets)
