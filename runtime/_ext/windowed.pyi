from collections.abc import Sequence

from numpy.typing import ArrayLike
from tinylcm.types import HistogramPair

from .drift import Detector, Policy

def upper_gamma(a: float, x: float) -> float: ...
def kolmogorov(statistic: float, n: float, m: float) -> float: ...

class Windowed(Detector):
    window: int
    warm_up: int

class Binned(Windowed):
    bins: int
    smoothing: float
    @property
    def histogram(self) -> HistogramPair | None: ...

class PSI(Binned):
    def __init__(
        self,
        edges: ArrayLike | None = None,
        counts: ArrayLike | None = None,
        threshold: float = 0.25,
        window: int = 200,
        smoothing: float = 0.5,
        bins: int = 16,
        warm_up: int = 1000,
        policy: Policy = "latch",
    ) -> None: ...
    @staticmethod
    def from_reference(
        values: ArrayLike,
        bins: int = 16,
        *,
        threshold: float = ...,
        window: int = ...,
        smoothing: float = ...,
        policy: Policy = ...,
    ) -> PSI: ...

class CategoricalPSI(Binned):
    def __init__(
        self,
        reference: ArrayLike | int,
        threshold: float = 0.25,
        window: int = 200,
        smoothing: float = 0.5,
        labels: Sequence[str] = (),
        warm_up: int = 1000,
        policy: Policy = "latch",
    ) -> None: ...

class JensenShannon(Binned):
    def __init__(
        self,
        edges: ArrayLike | None = None,
        counts: ArrayLike | None = None,
        threshold: float = 0.25,
        window: int = 200,
        smoothing: float = 0.0,
        bins: int = 16,
        warm_up: int = 1000,
        policy: Policy = "latch",
    ) -> None: ...
    @staticmethod
    def from_reference(
        values: ArrayLike,
        bins: int = 16,
        *,
        threshold: float = ...,
        window: int = ...,
        smoothing: float = ...,
        policy: Policy = ...,
    ) -> JensenShannon: ...

class ChiSquare(Binned):
    def __init__(
        self,
        reference: ArrayLike | int,
        threshold: float,
        window: int = 200,
        labels: Sequence[str] = (),
        warm_up: int = 1000,
        policy: Policy = "latch",
    ) -> None: ...
    @property
    def degrees(self) -> int: ...

class IncrementalKS(Windowed):
    def __init__(
        self,
        reference: ArrayLike | None = None,
        threshold: float = 0.2,
        window: int = 200,
        warm_up: int = 1000,
        policy: Policy = "latch",
    ) -> None: ...

class Wasserstein1(Windowed):
    def __init__(
        self,
        reference: ArrayLike | None = None,
        threshold: float = 1.0,
        window: int = 200,
        warm_up: int = 1000,
        policy: Policy = "latch",
    ) -> None: ...

class Chart(Detector):
    warm_up: int
    mean: float
    std: float

class CUSUM(Chart):
    k: float
    clip: float
    def __init__(
        self,
        mean: float | None = None,
        std: float | None = None,
        k: float = 0.5,
        threshold: float = 12.0,
        clip: float = 5.0,
        warm_up: int = 1000,
        policy: Policy = "reset",
    ) -> None: ...

class EWMAChart(Chart):
    lambda_val: float
    clip: float
    def __init__(
        self,
        mean: float | None = None,
        std: float | None = None,
        lambda_val: float = 0.1,
        threshold: float = 4.75,
        clip: float = 5.0,
        warm_up: int = 1000,
        policy: Policy = "reset",
    ) -> None: ...
