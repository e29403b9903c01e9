"""Drift detectors, one a file, usable alone or declared as monitors of a model."""

from .adwin import ADWIN
from .ks import BinnedKS
from .mahalanobis import Mahalanobis
from .page_hinkley import PageHinkley
from .psi import PSI, CategoricalPSI

__all__ = ["ADWIN", "PSI", "BinnedKS", "CategoricalPSI", "Mahalanobis", "PageHinkley"]
