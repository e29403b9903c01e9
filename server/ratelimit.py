"""How often somebody may ask: a bucket of tokens for each device, person and address (RFC 2697's committed rate).

It owns the buckets and no clock. A bucket that nobody has used lately is forgotten, which is the same as a full one.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

KEYS_MAX: Final = 100_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_s: float


class RateLimit:
    """Buckets of one kind.

    Args:
        per_s: tokens that flow in each second.
        burst: that a bucket holds.
        keys_max: buckets; the one that was used longest ago gives way.

    One thread uses it: the event loop's.
    """

    def __init__(self, per_s: float, burst: int, keys_max: int = KEYS_MAX) -> None:
        self._per_s, self._burst, self._keys_max = per_s, float(burst), keys_max
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait_s(self, key: str, now_s: float) -> float:
        """Seconds until there is a token; 0.0 when there is one now, which is not taken."""
        return self._wait_s(self._filled(key, now_s)) if key in self._buckets else 0.0

    def take(self, key: str, now_s: float) -> float:
        """Take a token; 0.0, or the seconds until there is one, and then none was taken."""
        bucket = self._filled(key, now_s)
        wait_s = self._wait_s(bucket)
        if wait_s == 0.0:
            bucket.tokens -= 1.0
        return wait_s

    def _wait_s(self, bucket: _Bucket) -> float:
        return 0.0 if bucket.tokens >= 1.0 else (1.0 - bucket.tokens) / self._per_s

    def _filled(self, key: str, now_s: float) -> _Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self._burst, now_s)
            if len(self._buckets) > self._keys_max:
                self._buckets.popitem(last=False)
            return bucket
        self._buckets.move_to_end(key)
        bucket.tokens = min(self._burst, bucket.tokens + max(0.0, now_s - bucket.filled_s) * self._per_s)
        bucket.filled_s = now_s
        return bucket
