"""Drift detectors in Cython, usable alone or declared as monitors of a model.

One life cycle for all: warm-up -> armed -> warning -> alarm -> armed again by the stated policy. `update(x)` says
whether this value raised an alarm, `update_many(block)` gives the indices of those that did, and `to_state()` bytes
survive a restart bit for bit.

>>> from tinylcm.drift import CUSUM
>>> detector = CUSUM(mean=20.0, std=0.5, threshold=8.0)
>>> detector.update_many([20.0] * 50 + [21.0] * 20), detector.suspect, detector.phase
([55, 61, 67], 62, 'armed')
"""

from tinylcm._ext.drift import ADWIN, DDM, EDDM, FHDDM, HDDMA, HDDMW, KSWIN, Detector, Limit, PageHinkley
from tinylcm._ext.vectors import MMD, BinnedKS, FeatureDrift, HotellingT2, KNNDistance, Mahalanobis
from tinylcm._ext.windowed import (
    CUSUM,
    PSI,
    CategoricalPSI,
    ChiSquare,
    EWMAChart,
    IncrementalKS,
    JensenShannon,
    Wasserstein1,
)

from .presets import preset

__all__ = [
    "ADWIN",
    "CUSUM",
    "DDM",
    "EDDM",
    "FHDDM",
    "HDDMA",
    "HDDMW",
    "KSWIN",
    "MMD",
    "PSI",
    "BinnedKS",
    "CategoricalPSI",
    "ChiSquare",
    "Detector",
    "EWMAChart",
    "FeatureDrift",
    "HotellingT2",
    "IncrementalKS",
    "JensenShannon",
    "KNNDistance",
    "Limit",
    "Mahalanobis",
    "PageHinkley",
    "Wasserstein1",
    "preset",
]
