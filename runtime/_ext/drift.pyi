from typing import Literal, TypeAlias

from numpy.typing import ArrayLike

from .core import Streaming

Policy: TypeAlias = Literal["reset", "rebase", "latch"]

POLICIES: tuple[Policy, ...]
WARNING: float
REARM: float

class Detector(Streaming):
    index: int
    ignored: int
    n_detections: int
    suspect: int
    drift_detected: bool
    warning_detected: bool
    def update(self, x: float, /) -> bool: ...
    def update_many(self, values: ArrayLike, /) -> list[int]: ...
    def reset(self) -> None: ...
    @property
    def statistic(self) -> float: ...
    @property
    def threshold(self) -> float: ...
    @property
    def p_value(self) -> float | None: ...
    @property
    def phase(self) -> Literal["warm-up", "armed", "warning", "alarm"]: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def seen(self) -> int: ...

class PageHinkley(Detector):
    min_instances: int
    delta: float
    alpha: float
    count: int
    def __init__(
        self,
        min_instances: int = 30,
        delta: float = 0.005,
        threshold: float = 50.0,
        alpha: float = 0.9999,
        mode: Literal["up", "down", "both"] = "both",
    ) -> None: ...

class ADWIN(Detector):
    delta: float
    clock: int
    min_window_length: int
    grace_period: int
    total: float
    variance: float
    def __init__(
        self,
        delta: float = 0.002,
        clock: int = 32,
        max_buckets: int = 5,
        min_window_length: int = 5,
        grace_period: int = 10,
    ) -> None: ...
    @property
    def width(self) -> int: ...

class DDM(Detector):
    warm_start: int
    warning_threshold: float
    drift_threshold: float
    def __init__(self, warm_start: int = 30, warning_threshold: float = 2.0, drift_threshold: float = 3.0) -> None: ...

class EDDM(Detector):
    warm_start: int
    alpha: float
    beta: float
    def __init__(self, warm_start: int = 30, alpha: float = 0.95, beta: float = 0.9) -> None: ...

class HDDMA(Detector):
    drift_confidence: float
    warning_confidence: float
    two_sided_test: bool
    def __init__(
        self, drift_confidence: float = 0.001, warning_confidence: float = 0.005, two_sided_test: bool = False
    ) -> None: ...

class HDDMW(Detector):
    drift_confidence: float
    warning_confidence: float
    lambda_val: float
    two_sided_test: bool
    def __init__(
        self,
        drift_confidence: float = 0.001,
        warning_confidence: float = 0.005,
        lambda_val: float = 0.05,
        two_sided_test: bool = False,
    ) -> None: ...

class FHDDM(Detector):
    sliding_window_size: int
    confidence_level: float
    def __init__(
        self, sliding_window_size: int = 100, confidence_level: float = 0.000001, short_window_size: int | None = None
    ) -> None: ...
    @property
    def short_window_size(self) -> int | None: ...

class KSWIN(Detector):
    alpha: float
    window_size: int
    stat_size: int
    seed: int
    def __init__(
        self, alpha: float = 0.005, window_size: int = 100, stat_size: int = 30, seed: int | None = None
    ) -> None: ...

class Limit(Detector):
    patience: int
    def __init__(self, threshold: float, patience: int = 1, policy: Literal["reset", "latch"] = "latch") -> None: ...
