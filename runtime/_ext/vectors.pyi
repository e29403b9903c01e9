from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tinylcm.types import HistogramPair

from .drift import Detector

Policy: TypeAlias = Literal["reset", "latch"]
MEMBERS: tuple[str, ...]

class Vector(Detector):
    d: int
    def update(self, row: ArrayLike, /) -> bool: ...
    def update_many(self, rows: ArrayLike, /) -> list[int]: ...

class RollingDistance(Vector):
    window: int
    shrinkage: float
    def means(self) -> NDArray[np.float64]: ...
    @property
    def worst(self) -> int: ...

class Mahalanobis(RollingDistance):
    def __init__(
        self,
        mean: ArrayLike,
        std: ArrayLike,
        correlation: ArrayLike | None,
        threshold: float,
        window: int = 50,
        shrinkage: float = 0.05,
        policy: Policy = "latch",
    ) -> None: ...

class HotellingT2(RollingDistance):
    def __init__(
        self,
        mean: ArrayLike,
        std: ArrayLike,
        correlation: ArrayLike | None,
        threshold: float,
        window: int = 50,
        shrinkage: float = 0.0,
        policy: Policy = "latch",
    ) -> None: ...

class KNNDistance(Vector):
    k: int
    n: int
    delta: float
    clip: float
    distance: float
    def __init__(
        self,
        reference: ArrayLike,
        k: int = 5,
        threshold: float = 30.0,
        delta: float = 0.25,
        clip: float = 5.0,
        policy: Policy = "reset",
    ) -> None: ...

class MMD(Vector):
    window: int
    components: int
    bandwidth: float
    seed: int
    def __init__(
        self,
        reference: ArrayLike,
        threshold: float,
        window: int = 100,
        components: int = 100,
        bandwidth: float | None = None,
        seed: int = 0,
        policy: Policy = "latch",
    ) -> None: ...

class Histograms(Vector):
    window: int
    bins: int
    def histogram(self, signal: int, /) -> HistogramPair: ...

class BinnedKS(Histograms):
    worst: int
    def __init__(
        self,
        edges: Sequence[ArrayLike],
        counts: Sequence[ArrayLike],
        threshold: float,
        window: int = 500,
        policy: Policy = "latch",
    ) -> None: ...

class FeatureDrift(Histograms):
    worst: int
    k: float
    clip: float
    shrinkage: float
    def __init__(
        self,
        mean: ArrayLike,
        std: ArrayLike,
        edges: Sequence[ArrayLike],
        counts: Sequence[ArrayLike],
        correlation: ArrayLike | None = None,
        moments: ArrayLike | None = None,
        level: float = 19.0,
        spread: float = 20.0,
        shape: float = 0.115,
        joint: float = 21.0,
        k: float = 0.25,
        clip: float = 4.0,
        window: int = 300,
        shrinkage: float = 0.05,
        threshold: float = 1.5,
        policy: Policy = "reset",
    ) -> None: ...
    @staticmethod
    def from_reference(
        rows: ArrayLike,
        bins: int = 16,
        *,
        level: float = ...,
        spread: float = ...,
        shape: float = ...,
        joint: float = ...,
        k: float = ...,
        clip: float = ...,
        window: int = ...,
        shrinkage: float = ...,
        threshold: float = ...,
        policy: Policy = ...,
    ) -> FeatureDrift: ...
    @property
    def member(self) -> str: ...
    @property
    def values(self) -> dict[str, float]: ...
