"""Streaming statistics in Cython: bounded memory, a nanosecond-scale update, state that survives a restart.

Every statistic takes `update(x)` and `update_many(block)`, answers `get()`, and gives `to_state()` bytes that
`from_state` takes back bit for bit; those that are defined on parts of a stream have `merge(other)`. NaN, infinities
and magnitudes beyond 1e140 change nothing and are counted in `ignored`.

>>> from tinylcm.stats import Var
>>> left, right = Var(), Var()
>>> left.update_many([1.0, 2.0])
>>> right.update(4.0)
>>> left.merge(right)
>>> round(left.mean, 3), round(left.get(), 3)
(2.333, 2.333)
"""

from tinylcm._ext.stats import (
    CountMin,
    Covariance,
    EWMean,
    EWVar,
    FeatureBlock,
    Histogram,
    Mean,
    MinMax,
    Moments,
    P2Quantile,
    QuantileSketch,
    Reservoir,
    RollingMinMax,
    RollingQuantile,
    SpaceSaving,
    Summary,
    Var,
    window_moments,
)

__all__ = [
    "CountMin",
    "Covariance",
    "EWMean",
    "EWVar",
    "FeatureBlock",
    "Histogram",
    "Mean",
    "MinMax",
    "Moments",
    "P2Quantile",
    "QuantileSketch",
    "Reservoir",
    "RollingMinMax",
    "RollingQuantile",
    "SpaceSaving",
    "Summary",
    "Var",
    "window_moments",
]
