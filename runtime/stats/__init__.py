"""Streaming statistics with O(1) memory, usable alone.

>>> from tinylcm.stats import Moments
>>> moments = Moments()
>>> for value in (1.0, 2.0, 4.0):
...     moments.update(value)
>>> round(moments.mean, 3), round(moments.variance, 3)
(2.333, 2.333)
"""

from tinylcm._ext.stats import Moments, Sketch, Summary, window_moments

__all__ = ["Moments", "Sketch", "Summary", "window_moments"]
